"""A differential fuzzer: `python -m tests.fuzz 0 20000` tries the calls of these seeds.

Each seed draws a call of a public triple (`fuzz_calls.py`) and runs forward and backward twice: by the array code in
float64; and as users might, with kernels, in any dtype and memory layout, with narrow integers, NaN or
infinities wherever a mask says that an entry does not matter, and every floating-point warning an error. Outputs and
gradients must agree. `--only NAME` takes one function alone, and `--seed N` one seed, whose call is shown.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import attnarray as aa
from attnarray import tree
from attnarray.checks import is_array
from attnarray.triples import find_triple
from tests.support.fuzz_calls import DRAWS
from tests.support.fuzz_draw import Arrays, Call, Draw

DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Where the distance is larger than this many roundings of the largest entry, `error_bound` looks at how far roundings
# of the inputs and those of the array code in the same dtype lead.
ROUNDINGS = 16
POISONS = {"NaN": np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 6e4}
Results = dict[tuple[Any, ...], np.ndarray]


class Variant(NamedTuple):
    """The options of the second run of a call."""

    dtype: str
    kernels: str
    poison: str
    narrow: bool
    strided: bool


def variant(d: Draw) -> Variant:
    """Draw a variant."""
    dtype = d.choice(*["float32"] * 5, *["float64"] * 3, "float16", "bfloat16")
    kernels = d.choice("auto", "auto", "auto", "auto", "reference")
    return Variant(dtype, kernels, d.choice("", *POISONS), d.chance(0.5), d.chance(0.5))


def is_floating(leaf: Any) -> bool:
    return is_array(leaf) and leaf.dtype == np.float64


def rounded(arguments: Arrays, dtype: str) -> Arrays:
    """The same numbers in `dtype`."""
    return tree.map(lambda leaf: leaf.astype(DTYPES[dtype]) if is_floating(leaf) else leaf, arguments)


def widened(arguments: Arrays) -> Arrays:
    return tree.map(lambda x: x.astype(np.float64) if is_array(x) and x.dtype in DTYPES.values() else x, arguments)


def poisoned(values: Any, hidden: dict[tuple[Any, ...], np.ndarray], poison: float) -> Any:
    """`values` with `poison` in the masked entries."""
    for path, mark in hidden.items():
        leaf = tree.get(values, path)
        values = tree.replace(values, path, np.where(mark, leaf.dtype.type(poison), leaf))
    return values


def narrowed(leaf: Any, d: Draw) -> Any:
    """Integers in the narrowest dtype that holds them, or in a wider one."""
    if not is_array(leaf) or leaf.dtype != np.int64 or not leaf.size:
        return leaf
    fits = [
        t
        for t in ("i1", "u1", "i2", "u2", "i4", "u4", "u8")
        if np.iinfo(t).min <= leaf.min() and leaf.max() <= np.iinfo(t).max
    ]
    return leaf.astype(d.choice(fits[0], *fits))


def laid_out(leaf: Any, d: Draw) -> Any:
    """The same numbers with other strides."""
    if not is_array(leaf) or not leaf.ndim:
        return leaf
    kind = d.integer(0, 5)
    if kind == 0:
        return np.asfortranarray(leaf)
    if kind == 1:
        flip = (*[slice(None, None, -1)] * leaf.ndim, ...)
        return leaf[flip].copy()[flip]
    if kind == 2:
        wide = np.ones([2 * n + 1 for n in leaf.shape], leaf.dtype)
        view = wide[(*[slice(1, None, 2)] * leaf.ndim, ...)]
        view[...] = leaf
        return view
    if kind == 3:
        order = d.rng.permutation(leaf.ndim)
        return leaf.transpose(order).copy().transpose(np.argsort(order))
    if (
        kind == 4
        and leaf.shape[0] > 1
        and np.array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape), equal_nan=leaf.dtype.kind == "f")
    ):
        return np.broadcast_to(leaf[:1].copy(), leaf.shape)
    if kind == 5:
        leaf = leaf.copy()
        leaf.flags.writeable = False
    return leaf


def cotangents(out: Any, seed: int) -> Any:
    """Random numbers in the shape of `out`, and 0 where it is infinite."""
    rng = np.random.default_rng(seed)
    return tree.map(lambda leaf: rng.standard_normal(leaf.shape) * np.isfinite(leaf.astype(np.float64)), out)


def run(call: Call, arguments: Arrays, cotangent: Callable[[Any], Any], kernels: str) -> Results:
    """Outputs and gradients by path, in float64."""
    _, fwd, bwd = find_triple(getattr(aa, call.function))
    with aa.use_kernels(kernels):
        out, ctx = fwd(**arguments)
        grads = bwd(cotangent(out), ctx)
        inference = getattr(aa, call.function)(**arguments)
    leaves = {("out", *path): leaf for path, leaf in tree.flatten(out)}
    leaves |= {path: leaf for path, leaf in tree.flatten(grads) if leaf is not None}
    for path, leaf in tree.flatten(inference):
        if not np.array_equal(leaf, leaves["out", *path], equal_nan=True):
            raise AssertionError(f"inference differs from the forward pass in out{list(path)}")
    return {path: np.asarray(leaf).astype(np.float64) for path, leaf in leaves.items()}


def plain(call: Call, arguments: Arrays, dtype: str, seed: int, kernels: str = "reference") -> Results:
    """The call with 0 in masked entries."""
    arguments = poisoned(arguments, call.hidden, 0.0)

    def cotangent(out: Any) -> Any:
        made = poisoned(cotangents(out, seed), call.hidden_out, 0.0)
        given = tree.map(lambda leaf: leaf.astype(DTYPES[dtype]), made)
        return tree.map(lambda leaf, like: leaf.astype(like.dtype), given, out)

    return run(call, arguments, cotangent, kernels)


def distances(found: Results, expected: Results) -> dict[tuple[Any, ...], tuple[float, float]]:
    """Path -> largest distance and largest entry; infinite for NaN and for another infinity."""
    if found.keys() != expected.keys():
        raise AssertionError(f"results {list(found)}, expected {list(expected)}")
    result = {}
    for path, exact in expected.items():
        if found[path].shape != exact.shape:
            raise AssertionError(f"{path} has shape {found[path].shape}, expected {exact.shape}")
        with np.errstate(all="ignore"):
            distance = np.abs(found[path] - exact)
        distance = np.where(found[path] == exact, 0.0, np.where(np.isnan(distance), np.inf, distance))
        finite = np.abs(exact[np.isfinite(exact)])
        result[path] = float(distance.max(initial=0.0)), float(finite.max(initial=0.0))
    return result


def moved(arguments: Arrays, eps: float, rng: np.random.Generator) -> Arrays:
    """Each number changed by one rounding."""
    return tree.map(lambda x: x * (1 + eps * rng.choice([-1.0, 1.0], x.shape)) if is_floating(x) else x, arguments)


def error_bound(call: Call, exact_arguments: Arrays, v: Variant, expected: Results, seed: int) -> dict[Any, float]:
    """The allowed error: that of roundings of the inputs, and of the array code in the same dtype."""
    rng, bound = np.random.default_rng(seed), collections.defaultdict(float)
    for n in range(8):
        near = moved(exact_arguments, EPS[v.dtype], rng)
        with np.errstate(all="ignore"):
            runs = [plain(call, near, v.dtype, seed)]
            if n < 4:
                runs.append(plain(call, rounded(near if n else exact_arguments, v.dtype), v.dtype, seed))
        for results in runs:
            for path, (distance, scale) in distances(results, expected).items():
                # Differences of equal numbers have the rounding of the cotangent, which is about 1. In float64, kernels
                # add up thousands of numbers one by one, and what is expected is rounded as well.
                relative = 2000 if v.dtype == "float64" else 8
                bound[path] = max(bound[path], 4.0 * distance + EPS[v.dtype] * (relative * scale + 160))
    return bound


def outcome(action: Callable[[], Results]) -> Results | Exception:
    """Results, or the ValueError or TypeError that refuses the call."""
    try:
        return action()
    except (ValueError, TypeError) as error:
        return error


def overflows(results: Results | Exception, dtype: str) -> bool:
    """Whether an entry is near or beyond the largest number of `dtype`."""
    if isinstance(results, Exception):
        return False
    bound = float(ml_dtypes.finfo(DTYPES[dtype]).max) / 16
    return any(bool(np.any(np.abs(leaf[np.isfinite(leaf)]) > bound)) for leaf in results.values())


def attempt(seed: int, only: Sequence[str] = ()) -> tuple[str, str, list[str]]:
    """Try one seed: the function, "right", "refused" or "wrong", and what is wrong."""
    d = Draw(seed)
    call = DRAWS[d.choice(*(only or DRAWS))](d)
    v = variant(d)
    given = rounded(call.arguments, v.dtype)
    exact = widened(given)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = outcome(lambda: plain(call, exact, v.dtype, seed))

    made = poisoned(given, call.hidden, POISONS[v.poison]) if v.poison else poisoned(given, call.hidden, 0.0)
    made = tree.map(lambda leaf: narrowed(leaf, d), made) if v.narrow else made
    made = tree.map(lambda leaf: laid_out(leaf, d), made) if v.strided else made
    before = tree.map(lambda leaf: leaf.tobytes() if is_array(leaf) else None, made)

    def cotangent(out: Any) -> Any:
        dout = poisoned(cotangents(out, seed), call.hidden_out, 0.0)
        dout = tree.map(lambda leaf, like: leaf.astype(DTYPES[v.dtype]).astype(like.dtype), dout, out)
        dout = poisoned(dout, call.hidden_out, POISONS[v.poison]) if v.poison else dout
        return tree.map(lambda leaf: laid_out(leaf, d), dout) if v.strided else dout

    wrong = []
    try:
        # Warnings are errors, unless results are too large for the dtype: then NumPy's warning is right.
        strict = "ignore" if overflows(expected, v.dtype) else "raise"
        with np.errstate(all=strict, under="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error")
            found = outcome(lambda: run(call, made, cotangent, v.kernels))
        if isinstance(expected, Exception) or isinstance(found, Exception):
            if type(expected) is type(found):
                return call.function, "refused", [str(found)]
            shown = [repr(x)[:200] if isinstance(x, Exception) else "results" for x in (found, expected)]
            return call.function, "wrong", [f"{shown[0]}, expected {shown[1]}"]
        bound: dict[Any, float] | None = None
        for path, (distance, scale) in distances(found, expected).items():
            if distance > ROUNDINGS * EPS[v.dtype] * scale:
                bound = bound or error_bound(call, poisoned(exact, call.hidden, 0.0), v, expected, seed)
                if not distance <= bound[path]:
                    wrong.append(f"{path} is off by {distance:.1e}, largest entry {scale:.1e}, bound {bound[path]:.1e}")
        if before != tree.map(lambda leaf: leaf.tobytes() if is_array(leaf) else None, made):
            wrong.append("an argument was written to")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        wrong.append(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
    return call.function, "wrong" if wrong else "right", wrong


def described(seed: int, only: Sequence[str]) -> Iterator[str]:
    """The call of a seed, line by line."""
    d = Draw(seed)
    call = DRAWS[d.choice(*(only or DRAWS))](d)
    yield f"{call.function}, {variant(d)}"
    for path, leaf in tree.flatten(call.arguments):
        yield f"  {tree.format_path(path)}: {f'{leaf.dtype} {leaf.shape}' if is_array(leaf) else leaf!r}"
    for path, mark in {**call.hidden, **{("dout", *path): mark for path, mark in call.hidden_out.items()}}.items():
        yield f"  hidden in {tree.format_path(path)}: {int(mark.sum())} of {mark.size}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("start", nargs="?", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("stop", nargs="?", type=int, default=2000, help="the seed to stop before (default 2000)")
    parser.add_argument("--only", nargs="+", default=(), choices=DRAWS, metavar="NAME", help="these functions alone")
    parser.add_argument("--seed", type=int, help="try this seed alone and show its call")
    options = parser.parse_args(arguments)
    seeds = range(options.start, options.stop)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
        print("\n".join(described(options.seed, options.only)))
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    told = time.monotonic()
    for n, seed in enumerate(seeds):
        function, verdict, notes = attempt(seed, options.only)
        counts[function][verdict] += 1
        if verdict == "wrong" or options.seed is not None:
            print(f"seed {seed}: {function}: {verdict} {'; '.join(notes)}", flush=True)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{n + 1} of {len(seeds)} calls", file=sys.stderr, flush=True)
    print(f"{'function':<30}{'right':>9}{'refused':>9}{'wrong':>9}")
    for function in sorted(counts):
        print(
            f"{function:<30}" + "".join(f"{counts[function][verdict]:>9}" for verdict in ("right", "refused", "wrong"))
        )
    totals = {verdict: sum(count[verdict] for count in counts.values()) for verdict in ("right", "refused", "wrong")}
    print(f"{len(seeds)} calls: {totals['right']} right, {totals['refused']} refused by both, {totals['wrong']} wrong.")
    return 1 if totals["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())

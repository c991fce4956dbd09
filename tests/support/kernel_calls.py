"""Calls of attention at sizes that cross panels, tiles and chunks, and the tolerances of kernels on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from attnarray import Partial, use_kernels
from attnarray.attention.dot_product.partial import attention_partial_bwd, attention_partial_fwd
from attnarray.kernels.numba.attention import call as attention_call
from attnarray.kernels.numba.attention import tiled as attention
from attnarray.kernels.numba.vector.lanes import tile_size

Call = dict[str, Any]  # the arguments of attention_partial, and the cotangents `dout` and `dlse`
DTYPES = ("float32", "float64")


class Sizes(NamedTuple):
    queries: int
    keys: int
    dim: int
    value_dim: int
    group: int = 2  # query heads that share a head of keys
    kv_heads: int = 2
    batch: int = 2

    @property
    def scores(self) -> tuple[int, int, int, int]:
        return self.batch, self.kv_heads * self.group, self.queries, self.keys


def call_of(sizes: Sizes, seed: int = 0, options: Iterable[str] = (), **given: Any) -> Call:
    """Random numbers with scores that are spread out, and random options by their names in `OPTIONS`."""
    rng = np.random.default_rng(seed)
    batch, heads, queries, keys = sizes.scores
    call = {
        "query": 3.0 * rng.standard_normal((batch, heads, queries, sizes.dim)),
        "key": rng.standard_normal((batch, sizes.kv_heads, keys, sizes.dim)),
        "value": rng.standard_normal((batch, sizes.kv_heads, keys, sizes.value_dim)),
        "dout": rng.standard_normal((batch, heads, queries, sizes.value_dim)),
    }
    for name in options:
        call |= OPTIONS[name](rng, *sizes.scores)
    return call | given


def _pick(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def _shape(rng: np.random.Generator, *full: int) -> tuple[int, ...]:
    """A shape that broadcasts to `full`."""
    return tuple(_pick(rng, size, size, 1) for size in full)[rng.integers(3) :]


def _bias(rng: np.random.Generator, *full: int) -> np.ndarray:
    bias = rng.standard_normal(_shape(rng, *full))
    return np.where(rng.random(bias.shape) < _pick(rng, 0.0, 0.3), -math.inf, bias)


def _offset(rng: np.random.Generator, batch: int, low: int, high: int) -> Any:
    """One for all, or one for each batch."""
    return _pick(rng, int(rng.integers(low, high)), rng.integers(low, high, batch))


def _dropout(rng: np.random.Generator, b: int, _h: int, _t: int, s: int) -> Call:
    positions = {"q_offset": _offset(rng, b, -5, s), "kv_offset": int(rng.integers(9))}
    return {"dropout_p": 0.3, "rng": int(rng.integers(2**63)) * 2 + 1, **positions}


OPTIONS: dict[str, Callable[..., Call]] = {
    "causal": lambda rng, b, h, t, s: {"is_causal": True},
    "window": lambda rng, b, h, t, s: {"window": (_pick(rng, None, 0, 9, 40), _pick(rng, None, 0, 5))},
    "offset": lambda rng, b, h, t, s: {"q_offset": _offset(rng, b, -t // 2, s), "is_causal": True},
    "window beyond the keys": lambda rng, b, h, t, s: {
        "window": (2, 3), "q_offset": _pick(rng, s + 2, s - 1, 3 - t, -t - 9, rng.integers(-t - 9, s + 9, b))
    },
    "lengths": lambda rng, b, h, t, s: {"kv_lengths": rng.integers(s + 1, size=b) * (rng.permutation(b + 1)[:b] > 0)},
    "softcap": lambda rng, b, h, t, s: {"softcap": _pick(rng, 0.8, 5.0)},
    "bias": lambda rng, b, h, t, s: {"bias": _bias(rng, b, h, t, s)},
    "mask": lambda rng, b, h, t, s: {"attn_mask": rng.random(_shape(rng, b, h, t, s)) < _pick(rng, 0.1, 0.7)},
    "sinks": lambda rng, b, h, t, s: {"sinks": 3.0 * rng.standard_normal(h)},
    "dropout": _dropout,
    "dropout mask": lambda rng, b, h, t, s: {
        "dropout_p": 0.3, "dropout_mask": rng.random(_shape(rng, b, h, t, s)) < 0.7
    },
    "cotangent of the lse": lambda rng, b, h, t, s: {"dlse": rng.standard_normal((b, h, t))},
}  # fmt: skip


def kinds(sizes: Sizes, seed: int = 0) -> list[Call]:
    """Without options, with all of them, and with all but dropout, for which few queries have another kernel."""
    rng = np.random.default_rng(seed)
    bias, mask = rng.standard_normal(sizes.scores), rng.random(sizes.scores) < 0.8
    positions = {"q_offset": sizes.keys - sizes.queries + np.arange(sizes.batch), "is_causal": True}
    lengths = np.maximum(sizes.keys - np.arange(sizes.batch), 0)
    given = {"bias": bias, "attn_mask": mask, "kv_lengths": lengths, "window": (sizes.keys // 2 + 1, None), **positions}
    everything = call_of(sizes, seed, ("softcap", "sinks", "cotangent of the lse"), **given)
    return [call_of(sizes, seed), everything | {"dropout_p": 0.3, "rng": 7}, everything]


KINDS = ["no option", "everything", "all but dropout"]


def in_dtype(call: Call, dtype: str) -> Call:
    """Copies, with floats in `dtype`."""

    def converted(value: Any) -> Any:
        return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind in "fV" else value

    return {name: converted(value) for name, value in call.items()}


def run(call: Call, kernels: str = "numba") -> dict[str, np.ndarray]:
    """out, lse and every gradient by name."""
    arguments = {name: value for name, value in call.items() if name not in ("dout", "dlse")}
    with use_kernels(kernels):
        part, ctx = attention_partial_fwd(**arguments)
        grads = attention_partial_bwd(Partial(call["dout"], call.get("dlse")), ctx)
    named = {"out": part.out, "lse": part.lse, **{f"d{name}": array for name, array in grads._asdict().items()}}
    return {name: array for name, array in named.items() if array is not None}


# The allowed error beyond that of the reference: a few roundings in another order, or some hundred if the reference
# in the same dtype is taken for the truth; and the rounding of scores, which are exponents.
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
ROUNDINGS = {"float32": 8 * EPS["float32"], "float64": 1e-13}


def assert_right(call: Call, dtype: str) -> dict[str, np.ndarray]:
    """The kernels against the reference in float64, on the same rounded numbers; return the results of the kernels."""
    rounded = in_dtype(call, dtype)
    truth = run(in_dtype(rounded, "float64"), "reference")
    found, reference = run(rounded), truth if dtype == "float64" else run(rounded, "reference")
    assert set(found) == set(truth)
    roundings = ROUNDINGS[dtype] + EPS[dtype] * largest(truth["lse"])
    for name, exact in truth.items():
        assert found[name].dtype == dtype, name
        assert found[name].shape == exact.shape, name
        error, allowed = distance(found[name], exact), 2 * distance(reference[name], exact)
        allowed += roundings * max(largest(exact), 1.0) * math.sqrt(_terms(name, exact, call))
        assert error <= allowed, f"{name} is off by {error}, at most {allowed}"
    return found


def _terms(name: str, exact: np.ndarray, call: Call) -> float:
    """The number of scores in the sum of a gradient, which may cancel."""
    scores = math.prod(call["query"].shape[:-1]) * call["key"].shape[2]
    return 1.0 if name in ("out", "lse") else max(scores / max(exact.size, 1), 1.0)


def largest(array: np.ndarray) -> float:
    return float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0))


def distance(array: np.ndarray, exact: np.ndarray) -> float:
    """max |array - exact|, where NaN and infinities must be the same."""
    np.testing.assert_array_equal(np.isnan(array), np.isnan(exact), err_msg="NaN")
    same = (array == exact) | np.isnan(exact)
    with np.errstate(invalid="ignore"):
        return float(np.max(np.where(same, 0.0, np.abs(array.astype(np.float64) - exact)), initial=0.0))


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 0.0) -> None:
    """All results, to `tolerance` of the largest entry."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        error = distance(found[name], array)
        assert error <= tolerance * max(largest(array), 1.0), f"{name} is off by {error}"


def checks() -> list[Callable[[], None]]:
    """Calls of which some are split over threads and some are too small, to be checked in any thread and process."""
    sizes = Sizes(150, 200, 32, 24), Sizes(9, 20, 32, 24), Sizes(2, 9000, 32, 32)
    calls = [in_dtype(call, "float32") for size in sizes for call in kinds(size)]

    def check_of(call: Call) -> Callable[[], None]:
        expected = run(call, "reference")
        return lambda: assert_equal(run(call), expected, 1e-4)  # sums of hundreds of float32

    return [check_of(call) for call in calls]


def set_tiles(monkeypatch: Any, keys: int, panels: int) -> None:
    """Tiles of so many register tiles of keys, and chunks of so many panels of queries, forward and backward."""

    def sizes(_features: int, dtype: Any, _backward: bool) -> tuple[int, int]:
        return keys * tile_size(dtype.itemsize * 8)[1], panels

    monkeypatch.setattr(attention_call, "tile_sizes", sizes)
    monkeypatch.setattr(attention, "_plan", attention._plan.__wrapped__)  # which caches the sizes of earlier calls

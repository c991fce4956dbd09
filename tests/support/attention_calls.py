"""Random calls of attention for property tests: drawn by hypothesis, cut into parts, and run forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from attnarray import Partial, use_kernels
from attnarray.attention.dot_product.partial import attention_partial_bwd, attention_partial_fwd

Arguments = dict[str, Any]
DENSE = ("bias", "attn_mask", "dropout_mask")  # arrays over queries and keys
POSITIONAL = ("is_causal", "window", "q_offset", "kv_lengths")
OPTIONS = (*POSITIONAL, "scale", "softcap", "bias", "attn_mask", "sinks", "rng")
KERNELS = st.sampled_from(["reference", "auto"])


@st.composite
def calls(draw: st.DrawFn, options: tuple[str, ...] = OPTIONS, always: tuple[str, ...] = ()) -> Arguments:
    """Arguments of `attention_partial` in layout BHTD: any sizes, any choice of `options`, all of `always`."""
    batch, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    queries, keys = draw(st.integers(1, 7)), draw(st.integers(1, 11))
    dim, value_dim = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    made: Arguments = {
        "query": 2.0 * rng.standard_normal((batch, kv_heads * group, queries, dim)),
        "key": rng.standard_normal((batch, kv_heads, keys, dim)),
        "value": rng.standard_normal((batch, kv_heads, keys, value_dim)),
    }
    full = (batch, kv_heads * group, queries, keys)
    some = st.sets(st.sampled_from(options)) if options else st.just(set())
    for name in sorted(draw(some) | set(always)):
        made |= _option(name, draw, rng, full)
    return made


def _option(name: str, draw: st.DrawFn, rng: np.random.Generator, full: tuple[int, ...]) -> Arguments:
    batch, heads, _, keys = full
    bound = st.none() | st.integers(0, 6)
    drawn = {
        "is_causal": lambda: True,
        "window": lambda: (draw(bound), draw(bound)),
        "q_offset": lambda: draw(st.integers(-3, 9) | _integers(batch, -3, 9)),
        "kv_lengths": lambda: draw(st.integers(0, keys) | _integers(batch, 0, keys)),
        "scale": lambda: draw(st.sampled_from([0.5, -0.3, 1.7])),
        "softcap": lambda: draw(st.sampled_from([0.7, 2.5])),
        "bias": lambda: _bias(rng, draw(_broadcast_to(full)), draw(st.sampled_from([0.0, 0.3]))),
        "attn_mask": lambda: rng.random(draw(_broadcast_to(full))) < draw(st.sampled_from([0.2, 0.7])),
        "sinks": lambda: rng.standard_normal(heads),
        "rng": lambda: draw(st.integers(0, 2**64 - 1)),
    }
    return {name: drawn[name](), **({"dropout_p": 0.4} if name == "rng" else {})}


def _bias(rng: np.random.Generator, shape: tuple[int, ...], masked: float) -> np.ndarray:
    return np.where(rng.random(shape) < masked, -np.inf, 2.0 * rng.standard_normal(shape))


def _integers(count: int, low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.integers(low, high), min_size=count, max_size=count).map(np.array)


def _broadcast_to(full: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Any shape that broadcasts to `full`."""
    shape = st.tuples(*(st.sampled_from([size, 1]) for size in full))
    return st.tuples(shape, st.integers(0, len(full))).map(lambda drawn: drawn[0][drawn[1] :])


def run(arguments: Arguments, dout: Any = None, dlse: Any = None, kernels: str = "auto") -> dict[str, Any]:
    """out, lse and every gradient by name; for random cotangents unless they are given."""
    with use_kernels(kernels):
        part, ctx = attention_partial_fwd(**arguments)
        given = cotangents(part)
        dpart = Partial(given.out if dout is None else dout, given.lse if dlse is None else dlse)
        grads = attention_partial_bwd(dpart, ctx)
    named = {"out": part.out, "lse": part.lse, **grads._asdict()}
    return {name: array for name, array in named.items() if array is not None}


def cotangents(part: Partial) -> Partial:
    rng = np.random.default_rng(1)
    return Partial(*(rng.standard_normal(array.shape).astype(array.dtype) for array in part))


def keys_between(arguments: Arguments, start: int, stop: int) -> Arguments:
    """The part of a call that belongs to the keys [start, stop); the sinks go with the first."""
    part = {**arguments, "kv_offset": arguments.get("kv_offset", 0) + start}
    for name in ("key", "value"):
        part[name] = part[name][:, :, start:stop]
    for name in set(DENSE) & set(part):
        part[name] = part[name] if part[name].shape[-1:] in ((), (1,)) else part[name][..., start:stop]
    if start:
        part.pop("sinks", None)
    return part


def queries_between(arguments: Arguments, start: int, stop: int) -> Arguments:
    """The part of a call that belongs to the queries [start, stop)."""
    part = {**arguments, "q_offset": arguments.get("q_offset", 0) + start}
    part["query"] = part["query"][:, :, start:stop]
    for name in set(DENSE) & set(part):
        array = part[name]
        part[name] = array if array.ndim < 2 or array.shape[-2] == 1 else array[..., start:stop, :]
    return part


def visible(arguments: Arguments) -> np.ndarray:
    """Which keys each query may attend to, by the definition of every option: (B, H, T, S)."""
    batch, heads, queries, _ = arguments["query"].shape
    keys = arguments["key"].shape[2]
    i = np.arange(queries)[:, None] + np.reshape(arguments.get("q_offset", 0), (-1, 1, 1, 1))
    j = np.arange(keys)
    left, right = arguments.get("window", (None, None))
    allowed = np.ones((batch, heads, queries, keys), bool)
    allowed &= j < np.reshape(arguments.get("kv_lengths", keys), (-1, 1, 1, 1))
    if arguments.get("is_causal"):
        allowed &= j <= i
    if left is not None:
        allowed &= j >= i - left
    if right is not None:
        allowed &= j <= i + right
    return allowed & arguments.get("attn_mask", True) & (arguments.get("bias", 0.0) != -np.inf)


def assert_equal_results(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-12) -> None:
    """All results named in both; in float64 a few hundred roundings of the largest entry, as softmax amplifies them."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape, name
        scale = np.max(np.abs(array[np.isfinite(array)]), initial=1.0)
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale, err_msg=name)

"""Packed sequences: each equals attention of it alone, outputs and gradients; empty sequences, and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.support.libraries import Library, assert_close

RNG = np.random.default_rng(8)
LENGTHS = [(3, 5), (0, 2), (4, 0), (1, 4), (6, 6), (0, 0), (70, 90)]
ROWS, KEYS = (np.concatenate([[0], np.cumsum([pair[n] for pair in LENGTHS])]) for n in range(2))
QUERY, KEY, VALUE = (
    RNG.standard_normal(shape) for shape in ((ROWS[-1], 4, 3), (KEYS[-1], 2, 3), (KEYS[-1], 2, 6))
)  # fmt: skip
BIAS = RNG.standard_normal((4, ROWS[-1], 90))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "causal, start": {"is_causal": True, "align": "start", "window": (3, 1)},
    "bias": {"bias": BIAS, "softcap": 1.5, "scale": 0.4},
    "sinks": {"sinks": RNG.standard_normal(4), "window": (2, 0)},
    "mask": {"attn_mask": aa.Window(2, 1) | aa.Global(1)},
    "dropout": {"dropout_p": 0.3, "rng": 5, "is_causal": True},
}
each_option = pytest.mark.parametrize("name", OPTIONS)
ROUNDING = 1e-12  # of sums of some hundred numbers near 1


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@each_option
def test_each_sequence_is_as_if_alone(name: str, kernels: Any) -> None:
    options = OPTIONS[name]
    dout, dlse = RNG.standard_normal((ROWS[-1], 4, 6)), RNG.standard_normal((4, ROWS[-1]))
    with aa.use_kernels(kernels):
        out, ctx = aa.ragged_attention_fwd(QUERY, KEY, VALUE, ROWS, KEYS, **options)
        dlse = np.where(ctx.lse == -np.inf, 0.0, dlse)
        grads = aa.ragged_attention_bwd(dout, ctx, dlse)
        np.testing.assert_array_equal(aa.ragged_attention(QUERY, KEY, VALUE, ROWS, KEYS, **options), out)
    dsinks = np.zeros(4)
    for n, (count, keys) in enumerate(LENGTHS):
        i, j = slice(ROWS[n], ROWS[n + 1]), slice(KEYS[n], KEYS[n + 1])
        alone = {key: value for key, value in options.items() if key != "align"}
        if "bias" in alone:
            alone["bias"] = BIAS[:, i, :keys]
        if "rng" in alone:
            alone["rng"] = aa.Philox(5).fold_in(n)
        alone |= {"q_offset": 0 if options.get("align") == "start" else keys - count, "layout": "BTHD"}
        found, other = aa.scaled_dot_product_attention_fwd(QUERY[None, i], KEY[None, j], VALUE[None, j], **alone)
        wanted = aa.scaled_dot_product_attention_bwd(dout[None, i], other, dlse[None, :, i])
        np.testing.assert_allclose(out[i], found[0], rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(ctx.lse[:, i], other.lse[0], rtol=0, atol=ROUNDING)
        for part, whole in ((wanted.query, grads.query[i]), (wanted.key, grads.key[j]), (wanted.value, grads.value[j])):
            np.testing.assert_allclose(whole, part[0], rtol=0, atol=ROUNDING)
        if wanted.bias is not None:
            np.testing.assert_allclose(grads.bias[:, i, :keys], wanted.bias, rtol=0, atol=ROUNDING)
            assert not grads.bias[:, i, keys:].any()
        dsinks += 0.0 if wanted.sinks is None else wanted.sinks
    assert (grads.bias is None) == ("bias" not in options)
    if "sinks" in options:
        np.testing.assert_allclose(grads.sinks, dsinks, rtol=0, atol=ROUNDING)


def test_causal_of_the_end_lets_the_last_query_see_all_keys() -> None:
    moved = VALUE.copy()
    moved[KEYS[4] - 1] += 1.0  # the last key of the sequence of one query and four keys
    for align, sees in (("end", True), ("start", False)):
        outs = [aa.ragged_attention(QUERY, KEY, v, ROWS, KEYS, is_causal=True, align=align) for v in (VALUE, moved)]
        assert (outs[0][ROWS[3]] != outs[1][ROWS[3]]).any() == sees


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_library(library: Library, dtype: str) -> None:
    if dtype not in library.dtypes:
        pytest.skip(f"{library.name} has no {dtype}")
    arrays = [array.astype(dtype) for array in (QUERY, KEY, VALUE)]
    bounds = library.array(ROWS), library.array(KEYS)
    out, ctx = aa.ragged_attention_fwd(*(library.array(array) for array in arrays), *bounds, is_causal=True)
    grads = aa.ragged_attention_bwd(out, ctx)
    wide = [array.astype(np.float64) for array in arrays]
    expected, other = aa.ragged_attention_fwd(*wide, ROWS, KEYS, is_causal=True)
    tolerance = {"float32": 1e-5, "float16": 1e-2}[dtype]  # some roundings of numbers near 1
    assert_close(out, expected, tolerance)
    for found, wanted in zip(grads[:3], aa.ragged_attention_bwd(expected, other)[:3], strict=True):
        assert_close(found, wanted, 4 * tolerance)


def test_no_sequences() -> None:
    q, k, v = QUERY[:0], KEY[:0], VALUE[:0]
    out, ctx = aa.ragged_attention_fwd(q, k, v, [0])
    assert out.shape == (0, 4, 6)
    assert [g.shape for g in aa.ragged_attention_bwd(out, ctx)[:3]] == [q.shape, k.shape, v.shape]
    assert ctx.lse.shape == (4, 0)


BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "first": (ValueError, {"cu_seqlens_q": [1, 84]}, "`cu_seqlens_q` goes from 1 to 84, expected to rise from 0"),
    "last": (ValueError, {"cu_seqlens_k": [0, 100]}, "`cu_seqlens_k` goes from 0 to 100, expected to rise"),
    "falls": (ValueError, {"cu_seqlens_q": [0, 9, 5, 84]}, "from 0 to 84 and falls after entry 1, expected"),
    "axes": (ValueError, {"cu_seqlens_q": [[0, 84]]}, r"expected \(N \+ 1,\): where each"),
    "floats": (TypeError, {"cu_seqlens_q": [0.0, 84.0]}, "`cu_seqlens_q` is"),
    "none": (ValueError, {"cu_seqlens_k": None}, "`cu_seqlens_k` is needed where there are not as many keys"),
    "counts": (ValueError, {"cu_seqlens_k": [0, 107]}, "`cu_seqlens_q` has 7 sequences and `cu_seqlens_k` has 1"),
    "array": (TypeError, {"attn_mask": np.ones((3, 4), bool)}, "expected a Mask of positions"),
    "bias": (ValueError, {"bias": BIAS[:, :, :80]}, r"`bias` has shape \(4, 84, 80\), expected \(H\|1, sum T, max S\)"),
    "four axes": (ValueError, {"query": QUERY[None]}, "must have three axes"),
    "values": (ValueError, {"value": VALUE[1:]}, "`value` has 106 rows but `key` has 107"),
    "heads": (ValueError, {"query": QUERY[:, :3]}, "heads"),
    "align": (ValueError, {"align": "middle"}, "`align` is 'middle'"),
    "option": (TypeError, {"q_offset": 3}, "no option `q_offset`"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "changes", "expected"), BAD.values(), ids=list(BAD))
def test_says_what_is_wrong(error: type[Exception], changes: dict[str, Any], expected: str) -> None:
    given = {"query": QUERY, "key": KEY, "value": VALUE, "cu_seqlens_q": ROWS, "cu_seqlens_k": KEYS, **changes}
    with pytest.raises(error, match=expected):
        aa.ragged_attention(**given)


def test_the_backward_says_what_is_wrong() -> None:
    out, ctx = aa.ragged_attention_fwd(QUERY, KEY, VALUE, ROWS, KEYS)
    with pytest.raises(ValueError, match="`dout` has shape"):
        aa.ragged_attention_bwd(out[1:], ctx)
    with pytest.raises(ValueError, match="`dlse` has shape"):
        aa.ragged_attention_bwd(out, ctx, ctx.lse[:2])

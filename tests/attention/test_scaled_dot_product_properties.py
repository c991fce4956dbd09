"""Properties of attention: parts equal the whole, and equivalent axes give equal results. Forward and backward."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnarray as aa
from attnarray import Partial
from attnarray.attention import blocks
from tests.support.attention_calls import (
    DENSE,
    KERNELS,
    POSITIONAL,
    Arguments,
    assert_equal_results,
    calls,
    cotangents,
    keys_between,
    queries_between,
    run,
)

splits = st.lists(st.integers(0, 11), max_size=3)


def parts_of(size: int, cuts: list[int]) -> list[tuple[int, int]]:
    """[0, size) in parts; a part may be empty, but not the first, to which the sinks go."""
    bounds = sorted([0, *(min(max(cut, 1), size) for cut in cuts), size])
    return list(itertools.pairwise(bounds))


def bias_gradients(arguments: Arguments, parts: list[np.ndarray], axis: int) -> np.ndarray:
    """The gradient of the whole bias: those of the parts, concatenated or, where the bias is broadcast, summed."""
    bias = arguments["bias"]
    sliced = bias.ndim >= -axis and bias.shape[axis] > 1
    return np.concatenate(parts, axis=axis) if sliced else sum(parts)


@given(calls(), splits, KERNELS, st.booleans())
def test_parts_of_the_keys_merge_into_the_whole(call: Arguments, cuts: list[int], kernels: str, by_merge: bool) -> None:
    expected = run(call, kernels=kernels)
    bounds = parts_of(call["key"].shape[2], cuts)
    with aa.use_kernels(kernels):
        forwards = [aa.attention_partial_fwd(**keys_between(call, *bound)) for bound in bounds]
        merged, merge_ctx = aa.merge_partials_fwd([part for part, _ in forwards])
        dout = cotangents(merged)
        if by_merge:
            dparts = aa.merge_partials_bwd(dout, merge_ctx).partials
            grads = [aa.attention_partial_bwd(d, ctx) for d, (_, ctx) in zip(dparts, forwards, strict=True)]
        else:
            grads = [aa.attention_partial_bwd(dout, ctx, merged) for _, ctx in forwards]
    found = {
        "out": merged.out,
        "lse": merged.lse,
        "query": sum(grad.query for grad in grads),
        "key": np.concatenate([grad.key for grad in grads], axis=2),
        "value": np.concatenate([grad.value for grad in grads], axis=2),
    }
    if "bias" in call:
        found["bias"] = bias_gradients(call, [grad.bias for grad in grads], -1)
    if "sinks" in call:
        found["sinks"] = sum(grad.sinks for grad in grads if grad.sinks is not None)
    assert_equal_results(found, expected)


@given(calls(), st.integers(1, 10))
def test_no_cotangent_of_the_lse_is_a_cotangent_of_zero(call: Arguments, cut: int) -> None:
    bounds = parts_of(call["key"].shape[2], [cut])
    forwards = [aa.attention_partial_fwd(**keys_between(call, *bound)) for bound in bounds]
    merged, merge_ctx = aa.merge_partials_fwd([part for part, _ in forwards])
    dout = cotangents(merged).out
    without, zero = (Partial(dout, dlse) for dlse in (None, np.zeros_like(merged.lse)))
    for part, other in zip(*(aa.merge_partials_bwd(d, merge_ctx).partials for d in (without, zero)), strict=True):
        assert_equal_results(part._asdict(), other._asdict())
    for _, ctx in forwards:
        found, expected = (aa.attention_partial_bwd(d, ctx)._asdict() for d in (without, zero))
        assert_equal_results(*({n: g for n, g in grads.items() if g is not None} for grads in (found, expected)))


@given(calls(), splits, KERNELS)
def test_chunks_of_the_queries_make_up_the_whole(call: Arguments, cuts: list[int], kernels: str) -> None:
    expected = run(call, kernels=kernels)
    dout = cotangents(Partial(expected["out"], expected["lse"]))
    bounds = parts_of(call["query"].shape[2], cuts)
    chunks = [
        run(queries_between(call, a, b), dout.out[:, :, a:b], dout.lse[:, :, a:b], kernels=kernels) for a, b in bounds
    ]
    found = {name: np.concatenate([chunk[name] for chunk in chunks], axis=2) for name in ("out", "lse", "query")}
    found |= {name: sum(chunk[name] for chunk in chunks) for name in expected if name in ("key", "value", "sinks")}
    if "bias" in call:
        found["bias"] = bias_gradients(call, [chunk["bias"] for chunk in chunks], -2)
    assert_equal_results(found, expected)


@given(calls(), KERNELS, st.integers(1, 40))
def test_the_size_of_the_blocks_does_not_matter(call: Arguments, kernels: str, elements: int) -> None:
    expected = run(call, kernels=kernels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ELEMENTS", elements)
        found = run(call, kernels=kernels)
    assert_equal_results(found, expected)


@given(calls(("scale", "softcap", "sinks", "rng")), KERNELS)
def test_decoding_with_a_cache_is_the_full_causal_pass(call: Arguments, kernels: str) -> None:
    keys = call["key"].shape[2]
    queries = min(call["query"].shape[2], keys)
    call = {**queries_between(call, 0, queries), "is_causal": True, "q_offset": keys - queries}
    expected = run(call, kernels=kernels)
    for t in range(queries):
        seen = keys - queries + t + 1
        token = run(keys_between(queries_between(call, t, t + 1), 0, seen), kernels=kernels)
        np.testing.assert_allclose(token["out"], expected["out"][:, :, t : t + 1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(token["lse"], expected["lse"][:, :, t : t + 1], rtol=0, atol=1e-12)


@given(calls(("scale", "softcap", "sinks", "rng", "window"), always=("is_causal",)), KERNELS, st.integers(1, 5))
def test_later_keys_do_not_change_earlier_queries(call: Arguments, kernels: str, more: int) -> None:
    queries = min(call["query"].shape[2], call["key"].shape[2])
    call = queries_between(call, 0, queries)
    longer = {**call}
    for name in ("query", "key", "value"):
        later = np.full_like(call[name][:, :, :1], 7.0).repeat(more, axis=2)
        longer[name] = np.concatenate([call[name], later], axis=2)
    found, expected = run(longer, kernels=kernels), run(call, kernels=kernels)
    for name in ("out", "lse"):
        np.testing.assert_allclose(found[name][:, :, :queries], expected[name], rtol=0, atol=1e-12)


@given(calls(("scale", "softcap", "sinks", "bias", "attn_mask")), KERNELS, st.randoms(use_true_random=False))
def test_the_order_of_the_keys_does_not_matter(call: Arguments, kernels: str, random: Any) -> None:
    order = list(range(call["key"].shape[2]))
    random.shuffle(order)
    permuted = {**call, "key": call["key"][:, :, order], "value": call["value"][:, :, order]}
    for name in set(DENSE) & set(call):
        permuted[name] = call[name] if call[name].shape[-1:] in ((), (1,)) else call[name][..., order]
    found, expected = run(permuted, kernels=kernels), run(call, kernels=kernels)
    for name in ("key", "value"):
        expected[name] = expected[name][:, :, order]
    if "bias" in call and call["bias"].shape[-1:] not in ((), (1,)):
        expected["bias"] = expected["bias"][..., order]
    assert_equal_results(found, expected)


@given(calls(), KERNELS)
def test_grouped_heads_are_repeated_key_heads(call: Arguments, kernels: str) -> None:
    batch, kv_heads, keys, _ = call["key"].shape
    group = call["query"].shape[1] // kv_heads
    repeated = {**call, **{name: call[name].repeat(group, axis=1) for name in ("key", "value")}}
    found, expected = run(call, kernels=kernels), run(repeated, kernels=kernels)
    for name in ("key", "value"):
        expected[name] = expected[name].reshape(batch, kv_heads, group, keys, -1).sum(axis=2)
    assert_equal_results(found, expected)


def swapped(array: np.ndarray) -> np.ndarray:
    return np.swapaxes(array, 1, 2)


@given(calls(), KERNELS)
def test_layout_bthd_is_bhtd_transposed(call: Arguments, kernels: str) -> None:
    names = ("query", "key", "value")
    other = {**call, "layout": "BTHD", **{name: swapped(call[name]) for name in names}}
    expected = run(call, kernels=kernels)
    dout = cotangents(Partial(expected["out"], expected["lse"]))
    found = run(other, swapped(dout.out), dout.lse, kernels=kernels)
    for name in ("out", *names):
        found[name] = swapped(found[name])
    assert_equal_results(found, expected)


@given(calls(("bias", "attn_mask", "rng")), st.integers(1, 10))
def test_merging_in_layout_bthd_is_merging_transposed(call: Arguments, cut: int) -> None:
    bounds = parts_of(call["key"].shape[2], [cut])
    parts = [aa.attention_partial(**keys_between(call, *bound)) for bound in bounds]
    merged, ctx = aa.merge_partials_fwd(parts)
    other, other_ctx = aa.merge_partials_fwd([Partial(swapped(out), lse) for out, lse in parts], layout="BTHD")
    dout = cotangents(merged)
    grads = aa.merge_partials_bwd(dout, ctx).partials
    other_grads = aa.merge_partials_bwd(Partial(swapped(dout.out), dout.lse), other_ctx).partials
    for found, expected in zip([other, *other_grads], [merged, *grads], strict=True):
        assert_equal_results({"out": swapped(found.out), "lse": found.lse}, expected._asdict())


@given(calls(), KERNELS)
def test_batch_axes_are_free(call: Arguments, kernels: str) -> None:
    expected = run(call, kernels=kernels)
    batch = call["query"].shape[0]
    dout = cotangents(Partial(expected["out"], expected["lse"]))
    per_batch = {"query", "key", "value"} | {n for n in DENSE if n in call and call[n].ndim == 4}
    per_batch |= {n for n in POSITIONAL if isinstance(call.get(n), np.ndarray)}
    for lead in ((1, batch), (batch, 1), (1, batch, 1)):

        def split(array: np.ndarray, lead: tuple[int, ...] = lead) -> np.ndarray:
            lead = lead if array.shape[0] == batch else (1,) * len(lead)  # a mask may be one for all batches
            return array.reshape(*lead, *array.shape[1:])

        other = {name: split(value) if name in per_batch else value for name, value in call.items()}
        found = run(other, split(dout.out), split(dout.lse), kernels=kernels)
        shaped = {n: split(a) if n in ("out", "lse", *per_batch) else a for n, a in expected.items()}
        assert_equal_results(found, shaped)


@given(calls(("is_causal", "window", "softcap", "rng")), KERNELS)
def test_the_head_axis_and_the_batch_axis_may_be_absent(call: Arguments, kernels: str) -> None:
    first = {name: array[:, :1] if name in ("query", "key", "value") else array for name, array in call.items()}
    expected = run(first, kernels=kernels)
    dout = cotangents(Partial(expected["out"], expected["lse"]))
    without_heads = {n: x[:, 0] if isinstance(x, np.ndarray) else x for n, x in first.items()}
    found = run(without_heads, dout.out[:, 0], dout.lse[:, 0], kernels=kernels)
    assert_equal_results(found, {name: array[:, 0] for name, array in expected.items()})
    matrices = {n: x[0] if isinstance(x, np.ndarray) else x for n, x in without_heads.items()}
    found = aa.attention_partial(**matrices)
    assert_equal_results(found._asdict(), {name: expected[name][0, 0] for name in ("out", "lse")})

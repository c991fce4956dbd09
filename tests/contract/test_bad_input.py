"""Bad input gets one clear error: what was given, what was expected, what to do. These tests check the message."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest

import attnarray as aa
from tests.support.bad_calls import BAD_CALLS, GIVEN, KEY, QUERY, VALUE
from tests.support.messages import says

SHAPES = "Shapes: query (2, 6, 5, 4), key (2, 3, 7, 4), value (2, 3, 7, 8)."


@pytest.mark.parametrize(("name", "changes", "error", "expected"), BAD_CALLS, ids=[call[0] for call in BAD_CALLS])
def test_attention_says_what_is_wrong(
    name: str, changes: dict[str, Any], error: type[Exception], expected: str
) -> None:
    says(error, expected, lambda: attend(**changes))
    if "S = 7" not in expected:  # a part does not know the number of all keys
        says(error, expected, lambda: aa.attention_partial(**{**GIVEN, **changes}))


def test_every_wrong_shape_of_query_key_and_value_shows_all_three() -> None:
    says(ValueError, SHAPES.replace("value (2, 3,", "value (2, 2,"), lambda: attend(value=VALUE[:, :2]))
    says(ValueError, SHAPES.replace("7, 4)", "7, 2)"), lambda: attend(key=KEY[..., :2]))


def attend(**changes: Any) -> Any:
    return aa.scaled_dot_product_attention(**{**GIVEN, **changes})


@pytest.mark.peers
def test_other_libraries_are_named() -> None:
    torch = pytest.importorskip("torch")
    says(TypeError, "`query` numpy, `key` torch, `value` numpy. Bring", lambda: attend(key=torch.tensor(KEY)))
    says(TypeError, "`value` numpy, `attn_mask` torch. Bring", lambda: attend(attn_mask=torch.ones(5, 7) > 0))
    says(TypeError, "`value` numpy, `sinks` torch. Bring", lambda: attend(sinks=torch.zeros(6)))
    says(TypeError, "`query` numpy, `q_offset` torch. Bring", lambda: attend(q_offset=torch.zeros(2, dtype=int)))
    says(TypeError, "`key` has type Linear, expected an array.", lambda: attend(key=torch.nn.Linear(2, 2)))


def test_options_with_a_spelling_of_their_own() -> None:
    for function in (aa.scaled_dot_product_attention_fwd, aa.attention_partial, aa.attention_partial_fwd):
        with pytest.raises(TypeError, match=r"no option `casual`. The options: scale, bias, window, .*, layout\."):
            function(**GIVEN, casual=True)
    with pytest.raises(
        TypeError, match=r"scaled_dot_product_attention\(\) got an unexpected keyword argument 'casual'"
    ):
        attend(casual=True)


@pytest.mark.parametrize("offset", [-1, 1.5, np.array([1, 2])])
def test_partial_attention_wants_the_position_of_its_first_key(offset: Any) -> None:
    says(
        ValueError, "expected an integer >= 0: the position of", lambda: aa.attention_partial(**GIVEN, kv_offset=offset)
    )


def test_partial_attention_takes_lengths_beyond_its_part() -> None:
    inside = aa.attention_partial(**GIVEN, kv_offset=5, kv_lengths=np.array([12, 5]))
    np.testing.assert_array_equal(aa.attention_partial(**GIVEN, kv_offset=5, kv_lengths=[2**20, 0]).out, inside.out)
    says(
        ValueError,
        "`kv_lengths` is -1, expected 0 to",
        lambda: aa.attention_partial(**GIVEN, kv_offset=5, kv_lengths=-1),
    )


def test_backward_checks_its_cotangents() -> None:
    out, ctx = aa.scaled_dot_product_attention_fwd(**GIVEN)
    backward = aa.scaled_dot_product_attention_bwd
    says(
        ValueError, "`dout` has shape (1, 6, 5, 8), expected (2, 6, 5, 8): the shape of", lambda: backward(out[:1], ctx)
    )
    says(TypeError, "different dtypes: dout float32, query float64.", lambda: backward(out.astype("f4"), ctx))
    says(TypeError, "`dout` has dtype int64, expected one of", lambda: backward(out.astype(int), ctx))
    says(
        TypeError, "`dout` has type list, expected an array of shape (2, 6, 5, 8)", lambda: backward(out.tolist(), ctx)
    )
    says(TypeError, "`dout` is None, expected an array of shape (2, 6, 5, 8)", lambda: backward(None, ctx))
    says(ValueError, "`dlse` has shape (2, 6, 5, 8), expected (2, 6, 5): the shape", lambda: backward(out, ctx, out))
    says(TypeError, "`dlse` has type list, expected an array of shape (2, 6, 5)", lambda: backward(out, ctx, [1.0]))
    strict = array_api_strict.asarray
    says(TypeError, "libraries: `dout` array_api_strict, `query` numpy. Bring", lambda: backward(strict(out), ctx))
    says(TypeError, "`dout` numpy, `dlse` array_api_strict, `query`", lambda: backward(out, ctx, strict(ctx.lse)))
    for swapped in (out, None):
        says(TypeError, "expected the SDPAContext that the forward pass", lambda s=swapped: backward(out, s))
        says(TypeError, "expected the context that the forward pass", lambda s=swapped: aa.attention_weights(s))
    says(TypeError, "`queries` is 3, expected a slice", lambda: aa.attention_weights(ctx, 3))
    says(ValueError, "`queries` has step 2, expected 1; take", lambda: aa.attention_weights(ctx, slice(0, 5, 2)))


def test_merging_parts_that_do_not_fit() -> None:
    part = aa.attention_partial(**GIVEN)
    smaller = aa.attention_partial(**{name: array[:1] for name, array in GIVEN.items()})
    single = aa.attention_partial(**{name: array.astype("f4") for name, array in GIVEN.items()})
    integers = aa.Partial(part.out.astype(int), part.lse)
    says(ValueError, "`partials` is empty, expected at least one Partial(out, lse).", lambda: aa.merge_partials([]))
    says(ValueError, "has shape (1, 6, 5, 8), expected (2, 6, 5, 8)", lambda: aa.merge_partials([part, smaller]))
    says(TypeError, "`partials` must be a sequence of Partial(out, lse)", lambda: aa.merge_partials(part))
    says(TypeError, "`partials` must be a sequence of Partial(out, lse)", lambda: aa.merge_partials(None))
    says(TypeError, "`partials[1]` is an array of shape (2, 6, 5, 8)", lambda: aa.merge_partials([part, part.out]))
    says(ValueError, "`partials[0].lse` has shape (2, 6, 5, 8), expected", lambda: aa.merge_partials([(part.out,) * 2]))
    says(ValueError, "`partials[0].lse` has shape (2, 6, 5)", lambda: aa.merge_partials([part], layout="BTHD"))
    _, ctx = aa.merge_partials_fwd([part])
    says(TypeError, "`dout` is an array of shape", lambda: aa.merge_partials_bwd(part.out, ctx))
    says(ValueError, "`dout.out` has shape (1, 6, 5, 8), expected", lambda: aa.merge_partials_bwd(smaller, ctx))
    _, ctx = aa.attention_partial_fwd(**GIVEN)
    says(TypeError, "`dout` is an array of shape", lambda: aa.attention_partial_bwd(part.out, ctx))
    wrong = aa.Partial(part.out, part.out)
    says(ValueError, "`merged.lse` has shape", lambda: aa.attention_partial_bwd(part, ctx, wrong))
    says(ValueError, "`layout` is 'TBHD', expected one of", lambda: aa.merge_partials([part], layout="TBHD"))
    says(TypeError, "out float64, partials[1].out float32. Bring", lambda: aa.merge_partials([part, single]))
    says(TypeError, "`partials[0].out` has dtype int64, expected", lambda: aa.merge_partials([integers]))
    with pytest.raises(TypeError, match="different libraries: array_api_strict, numpy"):
        aa.merge_partials([part, aa.Partial(*map(array_api_strict.asarray, part))])


BAD_MASKS = {
    "Causal": (ValueError, lambda: aa.Causal(1.5), "`Causal.offset` is 1.5, expected an integer"),
    "Causal, None": (ValueError, lambda: aa.Causal(None), "`Causal.offset` is None, expected an integer"),
    "Window": (ValueError, lambda: aa.Window("a", 0), "`window.left` is 'a', expected an integer >= 0"),
    "Padding": (TypeError, lambda: aa.Padding(2.5), "`Padding.lengths` is 2.5, expected an integer or an array of"),
    "Padding, floats": (TypeError, lambda: aa.Padding(np.zeros(2)), "`Padding.lengths` has dtype float64, expected an"),
    "Documents": (TypeError, lambda: aa.Documents(np.zeros(5), np.arange(7)), "`Documents.ids_q` has dtype float64"),
    "Documents, a list": (TypeError, lambda: aa.Documents([0], np.arange(7)), "`Documents.ids_q` has type list,"),
    "Documents, batches": (
        ValueError,
        lambda: aa.Documents(np.zeros((2, 5), int), np.zeros((3, 7), int)),
        "`Documents` has ids_q of shape (2, 5) and ids_k of shape (3, 7), expected (*batch, T) and (*batch, S) with",
    ),
    "Dense": (TypeError, lambda: aa.Dense([True]), "`Dense.array` has type list, expected a boolean array"),
    "Dense, integers": (TypeError, lambda: aa.Dense(np.ones(7, int)), "`Dense.array` has dtype int64, expected bool"),
    "dense mask, of no kind": (TypeError, lambda: aa.Mask().to_dense(5, 7), "`mask` is <attnarray.masks.mask.Mask"),
    "dense mask, sizes": (ValueError, lambda: aa.Causal().to_dense(-1, 7), "`queries` is -1, expected an"),
    "dense mask, offset": (
        ValueError,
        lambda: aa.Causal().to_dense(5, 7, q_offset=0.5),
        "`q_offset` is 0.5, expected an integer",
    ),
    "dense mask, shape": (
        ValueError,
        lambda: aa.Dense(np.ones((3, 4), bool)).to_dense(5, 7),
        "`mask` has shape (3, 4), which does not broadcast to (..., T, S) = (5, 7)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "call", "expected"), BAD_MASKS.values(), ids=list(BAD_MASKS))
def test_masks_say_what_is_wrong(error: type[Exception], call: Callable[[], Any], expected: str) -> None:
    says(error, expected, call)


@pytest.mark.parametrize("join", [lambda mask, array: mask & array, lambda mask, array: array & mask])
def test_masks_combine_with_masks_only(join: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(
        TypeError, match=r"`&` joins masks, but got an array of shape \(5, 7\).*attnarray.Dense\(array\)"
    ):
        join(aa.Causal(), np.ones((5, 7), bool))


def test_softmax_says_what_is_wrong() -> None:
    for function in (aa.softmax, aa.log_softmax):
        says(TypeError, "`x` has dtype int64, expected one of float16,", lambda f=function: f(np.array([1, 2])))
        says(TypeError, "`x` is None, expected an array.", lambda f=function: f(None))
        says(ValueError, "`axis` is 4, but the array has 4 axes: expected -4 to 3", lambda f=function: f(QUERY, 4))
        says(ValueError, "the array has 0 axes: expected at least one", lambda f=function: f(np.array(1.0)))
        says(TypeError, "`mask` has dtype int64, expected bool", lambda f=function: f(QUERY, mask=np.ones(4, int)))
        says(ValueError, "`mask` has shape (3,), which does", lambda f=function: f(QUERY, mask=np.ones(3, bool)))
        with pytest.raises(TypeError, match="Expected arrays, but got list"):
            function([1.0, 2.0])


@pytest.mark.peers
def test_dropout_on_jax_needs_64_bit_integers() -> None:
    jax = pytest.importorskip("jax")
    query, key, value = (jax.numpy.asarray(array, dtype="float32") for array in GIVEN.values())
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(RuntimeError, match=r'config.update\("jax_enable_x64", True\)'):
            aa.scaled_dot_product_attention(query, key, value, dropout_p=0.1, rng=3)
    finally:
        jax.config.update("jax_enable_x64", before)


def test_kernels_and_backends_with_wrong_names() -> None:
    with pytest.raises(
        ValueError, match="Unknown kernels 'fast'; expected one of 'auto', 'reference', 'compiled', 'numba', 'cuda'"
    ):
        aa.use_kernels("fast").__enter__()
    with pytest.raises(ValueError, match=r"Unknown backend 'numppy'. Known backends: numpy, cupy, torch, jax"):
        aa.use_backend("numppy").__enter__()


def test_integers_of_every_kind_are_accepted() -> None:
    expected = attend(is_causal=True, window=(2, 0), q_offset=2, kv_lengths=np.array([6, 6]))
    bounds = {"window": [np.int64(2), sys.maxsize], "is_causal": np.True_}  # sys.maxsize: as good as None
    for six, two in ((6, np.int32(2)), (np.array(6), [2, 2]), ([6, 6], np.array(2)), (np.uint8(6), np.array([2, 2]))):
        np.testing.assert_array_equal(attend(**bounds, kv_lengths=six, q_offset=two), expected)

"""Layers of Transformers: gradients, dropout, recomputation, step by step against whole runs, wrong parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.layers import (
    Embedding,
    FeedForward,
    LayerNorm,
    Linear,
    MixtureOfExperts,
    RMSNorm,
    TransformerBlock,
    check_params,
)
from attnarray.layers.layer import Layer
from tests.support.libraries import assert_close, assert_trees_close
from tests.support.messages import says

ROUNDING = 1e-12  # sums of a few dozen products in another order
RNG = np.random.default_rng(0)
X, MEMORY = RNG.standard_normal((2, 5, 8)), RNG.standard_normal((2, 3, 8))
LAYERS: dict[str, Any] = {
    "linear": Linear(8, 3),
    "linear without bias": Linear(8, 3, bias=False, init_std=0.1),
    "layer norm": LayerNorm(8, eps=1e-3),
    "layer norm without bias": LayerNorm(8, bias=False),
    "rms norm": RMSNorm(8),
    "zero-centered rms norm": RMSNorm(8, zero_centered=True),
    "experts": MixtureOfExperts(8, 5, num_experts=4),
    "experts, gates of all": MixtureOfExperts(8, 5, 4, 3, "gelu", gated=False, bias=True, renormalize=False),
    "shared expert": MixtureOfExperts(8, 5, 3, bias=True, shared_dim=6),
    "gelu": FeedForward(8, 12),
    "gated silu": FeedForward(8, 12, "silu", gated=True, bias=False),
    "gated gelu": FeedForward(8, 12, "gelu_tanh", gated=True),
    "relu": FeedForward(8, 12, "relu"),
}
BLOCKS: dict[str, TransformerBlock] = {
    "pre-norm": TransformerBlock(8, 2),
    "post-norm": TransformerBlock(8, 4, 11, pre_norm=False, activation="relu"),
    "decoder": TransformerBlock(8, 2, cross=True),
    "post-norm decoder": TransformerBlock(8, 2, cross=True, pre_norm=False),
    "as LLaMA": TransformerBlock(8, 4, 12, norm="rms", activation="silu", gated=True, bias=False, num_kv_heads=2,
                                 rotary=aa.Rotary()),
    "sandwich norm, as Gemma 2": TransformerBlock(8, 2, norm="rms_zero_centered", activation="gelu_tanh", gated=True,
                                                  branch_norm=True, head_dim=6, qk_norm="head", scale=0.4, softcap=2.0,
                                                  window=(2, 0), bias=False, rotary=aa.Rotary()),
    "norms of branches, as OLMo 2": TransformerBlock(8, 2, norm="rms", pre_norm=False, branch_norm=True, qk_norm="all",
                                                     bias=False),
    "parallel, as GPT-J": TransformerBlock(8, 2, parallel_residual="one_norm", qkv_bias=False, out_bias=False),
    "parallel, as GPT-NeoX": TransformerBlock(8, 2, parallel_residual="two_norms", rotary=aa.Rotary(dims=2)),
    "experts, as Mixtral": TransformerBlock(8, 4, 5, norm="rms", activation="silu", gated=True, bias=False,
                                            num_kv_heads=2, num_experts=3),
    "gates and a shared expert, as Qwen3-Next": TransformerBlock(
        8, 2, 5, norm="rms_zero_centered", activation="silu", gated=True, bias=False, qk_norm="head",
        rotary=aa.Rotary(dims=2), attention_gate="element", num_experts=3, shared_expert_dim=6),
    "sinks and scales": TransformerBlock(8, 2, norm="layer_no_bias", sinks=True, out_bias=False, residual_scale=0.3),
}  # fmt: skip
each_block = pytest.mark.parametrize("block", BLOCKS.values(), ids=list(BLOCKS))


def moved(params: Any) -> Any:
    """Parameters that are nowhere 0 or 1, so that wrong gradients show: the same, whatever was drawn before."""
    rng = np.random.default_rng(0)
    return tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), params)


def parameter_names(params: Any) -> list[str]:
    return [f"params.{tree.format_path(path)}" for path, _ in tree.flatten(params)]


def given(block: TransformerBlock) -> dict[str, Any]:
    return {"memory": MEMORY, "memory_lengths": [3, 2]} if block.cross else {}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=list(LAYERS))
def test_gradients_of_the_layers(layer: Any) -> None:
    params = moved(layer.init(aa.Philox(1), "float64"))
    report = aa.gradcheck(layer, params, X)
    assert report, str(report)
    assert {check.name for check in report.inputs} == {
        "x",
        *(f"params.{'.'.join(map(str, p))}" for p, _ in tree.flatten(params)),
    }


@each_block
def test_gradients_of_the_blocks(block: TransformerBlock) -> None:
    params = moved(block.init(aa.Philox(1), "float64"))
    report = aa.gradcheck(block, params, X, **given(block), is_causal=True, kv_lengths=[5, 4])
    assert report, str(report)
    names = {
        "x",
        *(["memory"] if block.cross else []),
        *(f"params.{'.'.join(map(str, p))}" for p, _ in tree.flatten(params)),
    }
    assert names == {check.name for check in report.inputs}


@each_block
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_with_dropout_of_a_fixed_key(block: TransformerBlock, recompute: bool) -> None:
    hidden = 0.1 if block.num_experts is None else 0.0  # experts have no dropout
    block = dataclasses.replace(block, dropout=0.2, attention_dropout=0.3, hidden_dropout=hidden, recompute=recompute)
    params = moved(block.init(aa.Philox(1), "float64"))
    options = {**given(block), "rng": aa.Philox(7)}
    report = aa.gradcheck(block, params, X, **options, max_elements=12)
    assert report, str(report)
    out = block(params, X, **options)
    np.testing.assert_array_equal(block(params, X, **options), out)
    assert np.mean(block(params, X, **{**options, "rng": aa.Philox(8)}) != out) > 0.5
    np.testing.assert_array_equal(
        block(params, X, **given(block)),
        dataclasses.replace(block, dropout=0.0, attention_dropout=0.0)(params, X, **given(block)),
    )


@each_block
def test_recomputing_gives_the_same_gradients_and_keeps_less(block: TransformerBlock) -> None:
    params, again = block.init(aa.Philox(1), "float64"), dataclasses.replace(block, recompute=True)
    x = RNG.standard_normal((2, 60, 8))
    out, ctx = block.fwd(params, x, **given(block), is_causal=True)
    same, its_ctx = again.fwd(params, x, **given(block), is_causal=True)
    np.testing.assert_array_equal(same, out)
    assert_trees_close(again.bwd(out, its_ctx), block.bwd(out, ctx), 0)
    assert tree.nbytes(its_ctx) < 0.5 * tree.nbytes(ctx)


@pytest.mark.parametrize("name", [name for name, block in BLOCKS.items() if not block.cross])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 2), (5,), (1, 4)])
def test_steps_with_a_cache_are_the_whole_causal_run(name: str, sizes: tuple[int, ...]) -> None:
    block = BLOCKS[name]
    params = moved(block.init(aa.Philox(1), "float64"))
    bias = aa.alibi(block.num_heads, 5, 5, causal=True, dtype="float64")
    mask = np.ones((2, 1, 1, 5), bool)
    mask[1, ..., :2] = False  # padded on the left
    whole = block(params, X, is_causal=True, bias=bias, attn_mask=mask)
    cache = block.parts()["attention"].cache(2, 6, "float64")
    start, steps = 0, []
    for size in sizes:
        past = start + size
        y, cache = block.step(params, X[:, start:past], cache, mask[..., :past], bias=bias[..., :past])
        steps.append(y)
        start = past
    assert_close(np.concatenate(steps, axis=1), whole, ROUNDING)
    assert cache.length == 5


def test_a_cache_is_written_in_place_and_never_beyond_its_end() -> None:
    layer = aa.layers.MultiHeadAttention(8, 2, num_kv_heads=1)
    params, cache = layer.init(aa.Philox(0), "float64"), layer.cache(2, 4, "float64")
    _, after = layer.step(params, X[:, :3], cache)
    assert after.key is cache.key
    assert np.all(cache.key[:, :, 3:] == 0)
    before = cache.key.copy()
    says(
        ValueError,
        "`cache` has `max_seq_len` 4, holds 3 positions and was given 2 more. Make",
        lambda: layer.step(params, X[:, :2], after),
    )
    np.testing.assert_array_equal(cache.key, before)


def test_rotary_attention_knows_offsets_of_each_batch() -> None:
    layer = aa.layers.MultiHeadAttention(8, 2, rotary=aa.Rotary(base=30.0, dims=2))
    params = layer.init(aa.Philox(0), "float64")
    y = layer(params, X[:, 3:], X, q_offset=np.array([3, 1]), is_causal=True)
    for batch, offset in enumerate((3, 1)):
        alone = layer(params, X[batch, 3:], X[batch], q_offset=offset, is_causal=True)
        assert_close(y[batch], alone, ROUNDING)
    report = aa.gradcheck(layer, params, X[:, 3:], X, q_offset=np.array([3, 1]), is_causal=True)
    assert report, str(report)


@pytest.mark.parametrize("layer", [*LAYERS.values(), *BLOCKS.values(), Embedding(7, 3)], ids=str)
def test_shapes_are_those_of_initial_parameters(layer: Any) -> None:
    params = layer.init(aa.Philox(3))
    assert tree.map(lambda leaf: leaf.dtype.name, params) == tree.map(lambda leaf: "float32", params)
    shapes = {path: leaf.shape for path, leaf in tree.flatten(params)}
    for path, shape in shapes.items():
        assert tree.get(layer.shapes(), path) == shape
    check_params(params, layer)
    again = layer.init(aa.Philox(3), "float64")
    assert_trees_close(params, again, 1e-7)


def test_initial_parameters_differ_from_part_to_part() -> None:
    params = TransformerBlock(8, 2, cross=True).init(aa.Philox(0))
    weights = [leaf for path, leaf in tree.flatten(params) if path[-1] == "weight" and leaf.shape == (8, 8)]
    assert len({leaf.tobytes() for leaf in weights}) == 8


BLOCK = BLOCKS["pre-norm"]
PARAMS = BLOCK.init(aa.Philox(0), "float64")


def altered(**changes: Any) -> Any:
    return {name: part for name, part in {**PARAMS, **changes}.items() if part is not None}


WRONG_PARAMS: dict[str, tuple[type[Exception], Any, str]] = {
    "none": (TypeError, None, "`params` is None, expected a dict with 'attention', 'attention_norm', 'feed_forward'"),
    "missing": (ValueError, altered(attention=None), "`params` lacks 'attention', which TransformerBlock needs."),
    "missing leaf": (ValueError, altered(attention_norm={"weight": np.ones(8)}), "`params.attention_norm` lacks 'b"),
    "extra": (ValueError, altered(cross={}), "`params` has 'cross', which TransformerBlock does not know, besides 'a"),
    "shape": (ValueError, altered(attention_norm={"weight": np.ones(8), "bias": np.ones(7)}),
              "`params.attention_norm.bias` has shape (7,), expected (8,): the shape of that parameter of Transf"),
    "a leaf": (TypeError, altered(feed_forward=np.ones(3)), "`params.feed_forward` is an array of shape (3,) and"),
    "a list": (TypeError, altered(attention_norm={"weight": [1.0], "bias": np.ones(8)}),
               "`params.attention_norm.weight` has type list, expected an array of shape (8,)"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "params", "expected"), WRONG_PARAMS.values(), ids=list(WRONG_PARAMS))
def test_wrong_parameters_are_named_by_their_path(error: type[Exception], params: Any, expected: str) -> None:
    says(error, expected, lambda: check_params(params, BLOCK))


def test_bad_configurations() -> None:
    says(ValueError, "`activation` is 'swish', expected one of 'relu', 'gelu'", lambda: FeedForward(8, 9, "swish"))
    says(
        ValueError,
        "`norm` is 'batch', expected one of 'layer', 'rms', 'layer_no_bias', 'rms_zero_centered'.",
        lambda: TransformerBlock(8, 2, norm="batch"),
    )
    says(ValueError, "`dropout` is 1.5, expected a probability", lambda: TransformerBlock(8, 2, dropout=1.5))
    says(ValueError, "`num_heads` (3) must divide `dim` (8)", lambda: TransformerBlock(8, 3))
    says(ValueError, "`hidden_dim` is -1, expected an integer >= 1", lambda: FeedForward(8, -1))
    says(ValueError, "`init_std` is -1, expected a finite number >= 0.", lambda: Linear(8, 3, init_std=-1))
    says(ValueError, "`eps` is 0.0, expected a finite number above 0.", lambda: LayerNorm(8, 0.0))
    says(ValueError, "`memory` is None, but the block was made with cross=True: give a memory.",
         lambda: BLOCKS["decoder"](BLOCKS["decoder"].init(aa.Philox(0), "float64"), X))  # fmt: skip
    says(ValueError, "but the block was made with cross=False: leave out a memory.", lambda: BLOCK(PARAMS, X, MEMORY))
    says(
        TypeError,
        "`rotary` is 3, expected attnarray.Rotary(...).",
        lambda: aa.layers.MultiHeadAttention(8, 2, rotary=3)(PARAMS["attention"], X),
    )  # type: ignore[arg-type]
    says(TypeError, "expected the BlockContext or Recomputed that the forward", lambda: BLOCK.bwd(X, None))  # type: ignore[arg-type]
    assert issubclass(TransformerBlock, Layer)

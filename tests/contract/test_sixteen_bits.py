"""Layers and models in 16 bits: all results in that dtype, and sums over many sequences do not saturate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import layers, models, tree
from attnarray.checks import FLOATS, is_array
from tests.support.layer_calls import LAYERS, Call, cotangent

CALLS = [pytest.param(call, id=name) for name, call in LAYERS.items()]
ROWS = 400  # a sum of ones in bfloat16 ends at 256
# bfloat16 has 8 bits: a few roundings of what is summed, while a sum that stops at 256 of 400 is off by a third.
TOLERANCE = 0.1


def rounded(given: Any, dtype: str) -> Any:
    """Floating arrays rounded to bfloat16 and converted to `dtype`."""

    def short(leaf: Any) -> Any:
        floating = is_array(leaf) and leaf.dtype.name in FLOATS
        return aa.asarray(aa.asarray(leaf, dtype="bfloat16"), dtype=dtype) if floating else leaf

    return tree.map(short, given)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("call", CALLS)
def test_results_have_the_dtype_of_the_parameters(call: Call, dtype: str) -> None:
    params = call.function.init(aa.Philox(0), dtype)
    out, ctx = call.function.fwd(params, **rounded(call.given, dtype))
    grads = call.function.bwd(cotangent(out), ctx)
    for path, leaf in tree.flatten((params, out, grads)):
        if leaf.dtype.name in FLOATS:
            assert leaf.dtype.name == dtype, path


def gradients(function: Any, dtype: str, **given: Any) -> Any:
    """Gradients of parameters, or of a bias; sequences are equal, so that all terms of a sum have one sign."""
    if hasattr(function, "init"):
        given = {"params": function.init(aa.Philox(0)), **given}
    out, pullback = aa.vjp(function, **rounded(given, dtype))
    grads = pullback(tree.map(lambda leaf: (leaf * 0 + np.arange(1, leaf.shape[-1] + 1)).astype(leaf.dtype), out))
    return getattr(grads, "params", grads)


TOKENS = np.tile(np.arange(4), (ROWS, 1))
SEQUENCES = np.random.default_rng(0).standard_normal((2, 1, 1, 3, 4)).repeat(ROWS, 1)
SUMMED = {
    "BERT": (models.BERT(11, 4, 8, 1, 2), {"tokens": TOKENS}, [("position", "weight")]),
    "PatchClassifier": (
        models.PatchClassifier((4, 6), 2, 3, dim=8, num_layers=1, num_heads=2),
        {"images": np.ones((ROWS, 4, 6))},
        [("position", "weight"), ("word", "weight")],
    ),
    "Transformer": (
        models.Transformer(11, 9, 6, 8, 1, 2, dropout=0.0, positions="learned"),
        {"source": TOKENS, "target": TOKENS},
        [("source", "position", "weight"), ("target", "position", "weight")],
    ),
    "Seq2Seq": (
        models.Seq2Seq(11, 9, 4, 6, layers.BahdanauAttention(6, 6, 5)),
        {"source": np.zeros((1, 3), int), "target": np.ones((1, ROWS), int)},
        [("decoder", "combine", "weight")],
    ),
    "a bias that some batches share": (
        aa.scaled_dot_product_attention,
        {**dict.fromkeys(("query", "key", "value"), SEQUENCES), "bias": np.zeros((2, 1, 1, 3, 3))},
        [("bias",)],
    ),
}


@pytest.mark.parametrize(("function", "given", "paths"), SUMMED.values(), ids=list(SUMMED))
def test_sums_over_many_sequences_or_steps(function: Any, given: Any, paths: list[tree.Path]) -> None:
    exact, found = (gradients(function, dtype, **given) for dtype in ("float64", "bfloat16"))
    for path in paths:
        expected = tree.get(exact, path)
        error = np.abs(tree.get(found, path).astype(np.float64) - expected).max()
        assert error < TOLERANCE * np.abs(expected).max(), path

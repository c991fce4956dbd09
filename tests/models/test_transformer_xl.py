"""Transformer-XL: frozen numbers over several segments, gradients, the memory, bad input."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.models import TransformerXL, remembered
from tests.support.frozen import Frozen, frozen, nested
from tests.support.libraries import Library, assert_close, assert_trees_close
from tests.support.messages import says

RNG = np.random.default_rng(0)
TEXT = RNG.integers(11, size=(2, 15))
PAPER = {"float64": 1e-10, "float32": 1e-5}  # sums in another order over three segments; PyTorch's own is at 3e-6
MODELS = {
    "as in the paper": TransformerXL(11, memory=5, dim=8, num_layers=2, num_heads=2, dropout=0.0),
    "pre-norm": TransformerXL(
        11, memory=5, dim=8, num_layers=2, num_heads=2, pre_norm=True, tie_embeddings=False, dropout=0.0
    ),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))


@cache
def references() -> dict[str, Frozen]:
    return frozen("transformer_xl.npz")


def moved(params: Any) -> Any:
    """Parameters that are nowhere 0 or 1, so that wrong gradients show."""
    return tree.map(lambda leaf: leaf + 0.3 * RNG.standard_normal(leaf.shape), params)


class OneSegment:
    """The logits of a segment after a memory, as a layer for gradcheck."""

    def __init__(self, model: TransformerXL, memory: Any, rng: Any) -> None:
        self.model, self.memory, self.rng = model, memory, rng

    def __call__(self, params: Any, tokens: Any) -> Any:
        return self.model(params, tokens, self.memory, rng=self.rng).logits

    def fwd(self, params: Any, tokens: Any) -> Any:
        result, ctx = self.model.fwd(params, tokens, self.memory, rng=self.rng)
        return result.logits, ctx

    def bwd(self, dout: Any, ctx: Any) -> Any:
        return self.model.bwd(dout, ctx)


@pytest.mark.parametrize("dtype", list(PAPER))
@pytest.mark.parametrize("name", list(references()))
def test_it_equals_the_paper(name: str, dtype: str) -> None:
    reference = references()[name].in_dtype(dtype)
    arrays, model = reference.arrays, TransformerXL(**reference.options, dropout=0.0)
    params, memory, total = nested(reference.below("params.")), None, None
    for n in range(3):
        (logits, memory), ctx = model.fwd(params, arrays[f"tokens.{n}"], memory)
        assert logits.dtype == dtype
        assert_close(logits, arrays[f"logits.{n}"], PAPER[dtype], f"segment {n}")
        grads = model.bwd(arrays[f"dout.{n}"], ctx).params
        total = grads if total is None else tree.add(total, grads)
    assert_trees_close(list(memory), list(reference.below("memory.").values()), PAPER[dtype])
    for path, grad in tree.flatten(total):
        assert_close(grad, arrays[f"grad_{tree.format_path(path)}"], PAPER[dtype], tree.format_path(path))
    assert len(tree.flatten(total)) == len(reference.below("grad_"))


@each_model
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_of_the_whole_model(model: TransformerXL, dropout: float) -> None:
    # GELU has no kink that a step of the differences could cross.
    model = dataclasses.replace(model, activation="gelu", dropout=dropout, attention_dropout=dropout)
    params = moved(model.init(aa.Philox(1), "float64"))
    memory = model(params, TEXT[:, :4]).memory
    of_one = OneSegment(model, memory, aa.Philox(3))
    report = aa.gradcheck(of_one, params, TEXT[:, 4:8], max_elements=3)
    assert report, str(report)
    assert {check.name for check in report.inputs} == {f"params.{tree.format_path(p)}" for p, _ in tree.flatten(params)}


@each_model
def test_a_long_memory_makes_segments_one_text(model: TransformerXL) -> None:
    model = dataclasses.replace(model, memory=20)
    params = moved(model.init(aa.Philox(2), "float64"))
    whole, memory, parts = model(params, TEXT).logits, None, []
    for part in np.split(TEXT, [4, 5, 11], axis=1):
        logits, memory = model(params, part, memory)
        parts.append(logits)
    assert_close(np.concatenate(parts, axis=1), whole, 1e-12)  # rounding of sums in another order
    assert memory[0].shape == (2, 15, 8)


@each_model
def test_the_memory_is_visible_and_the_future_is_masked(model: TransformerXL) -> None:
    params = moved(model.init(aa.Philox(4), "float64"))
    first = model(params, TEXT[:, :4]).memory
    other = model(params, TEXT[:, 1:5]).memory
    logits = model(params, TEXT[:, 4:8], first).logits
    assert np.all(np.abs(model(params, TEXT[:, 4:8], other).logits - logits).max(-1) > 1e-9)
    changed = np.where(np.arange(4) < 2, TEXT[:, 4:8], 0)
    assert_close(model(params, changed, first).logits[:, :2], logits[:, :2], 1e-12)


def test_what_is_cached() -> None:
    x = np.arange(4.0)[None, :, None]
    assert remembered(None, x, 3)[0, :, 0].tolist() == [1, 2, 3]
    assert remembered(x, x[:, :2], 3)[0, :, 0].tolist() == [3, 0, 1]
    assert remembered(x, x, 20).shape == (1, 8, 1)
    assert remembered(x, x, 0).shape == (1, 0, 1)


def test_dropout_is_drawn_by_the_key() -> None:
    model = dataclasses.replace(MODELS["as in the paper"], dropout=0.3)
    params = model.init(aa.Philox(0))
    expected = "`rng` is None, but this TransformerXL needs one"
    says(ValueError, expected, lambda: model.fwd(params, TEXT))
    first, again, other = (model(params, TEXT, rng=aa.Philox(seed)).logits for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) > 0.9


def test_results_are_equal_on_every_library(library: Library) -> None:
    model = MODELS["pre-norm"]
    params = model.init(aa.Philox(0), "float64")
    memory = model(params, TEXT[:, :4]).memory
    (logits, after), ctx = model.fwd(params, TEXT[:, 4:8], memory)
    mine, tokens = library.moved(params), library.moved(TEXT[:, 4:8])
    (found, its_after), its = model.fwd(mine, tokens, tuple(library.moved(each) for each in memory))
    assert_close(found, logits, 1e-12)  # rounding of sums in another order
    assert_trees_close(its_after, after, 1e-12)
    assert_trees_close(model.bwd(found, its), model.bwd(logits, ctx), 1e-11)


def test_bad_input_is_named() -> None:
    model = MODELS["as in the paper"]
    params = model.init(aa.Philox(0), "float64")
    memory = model(params, TEXT).memory
    bad: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "`memory` is -1, expected an integer >= 0", lambda: dataclasses.replace(model, memory=-1)),
        (ValueError, "`dim` is 7, expected an even number", lambda: dataclasses.replace(model, dim=7)),
        (ValueError, "expected None or 2 arrays (B, M, 8), one for each block",
         lambda: model(params, TEXT, memory[:1])),
        (ValueError, "`memory` has shape (1, 5, 8), expected (2, 5, 8)",
         lambda: model(params, TEXT, tuple(each[:1] for each in memory))),
        (ValueError, "`params` has 'norm', which TransformerXL does not know",
         lambda: model({**params, "norm": {}}, TEXT)),
        (TypeError, "`ctx` is None, expected the TransformerXLContext", lambda: model.bwd(TEXT, None)),  # type: ignore[arg-type]
    ]  # fmt: skip
    for error, expected, call in bad:
        says(error, expected, call)

"""BERT: against transformers, gradients of the whole model, its options, wrong input."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.models import BERT, BERTResult
from attnarray.models.bert.published import bert_fields, bert_names
from tests.support.frozen import Frozen, frozen, nested
from tests.support.libraries import Library, assert_close, assert_trees_close
from tests.support.messages import says

# Sums of a few hundred products through three blocks, in another order than PyTorch's.
ROUNDING = {"float64": 1e-10, "float32": 1e-5}
REFERENCES = frozen("bert.npz")
each_reference = pytest.mark.parametrize("reference", REFERENCES.values(), ids=list(REFERENCES))
each_dtype = pytest.mark.parametrize("dtype", list(ROUNDING))

SMALL = BERT(vocab_size=7, max_seq_len=5, dim=6, num_layers=2, num_heads=2, hidden_dim=5, eps=1e-3)
RNG = np.random.default_rng(0)
TOKENS, TYPES = RNG.integers(7, size=(3, 4)), RNG.integers(2, size=(3, 4))


def moved(params: Any) -> Any:
    """Parameters that are nowhere 0 or 1, so that wrong gradients show."""
    return tree.map(lambda leaf: leaf + 0.3 * RNG.standard_normal(leaf.shape), params)


PARAMS = moved(SMALL.init(aa.Philox(1), "float64"))


def model_of(reference: Frozen) -> BERT:
    names = reference.below("param_")
    return BERT(**{**bert_fields(reference.options["config"], names), "dropout": 0.0, "attention_dropout": 0.0})


def tree_of(model: BERT, arrays: dict[str, np.ndarray]) -> Any:
    """The tree of the model out of arrays under their names in transformers; what is not among them is None."""
    names = bert_names(model)
    plain = {names.plain(name): array for name, array in arrays.items()}
    return nested({tensor.paths[0]: plain.get(tensor.name) for tensor in names.tensors})


def run(reference: Frozen, dtype: str = "float64", **changes: Any) -> tuple[BERT, Any, BERTResult, Any]:
    model = dataclasses.replace(model_of(reference), **changes)
    arrays = reference.arrays
    params = tree_of(model, reference.in_dtype(dtype).below("param_"))
    mask = arrays["exists"].astype(bool)[:, None, None, :]
    return model, params, *model.fwd(params, arrays["tokens"], arrays["types"], attn_mask=mask)


def gradients(reference: Frozen, dtype: str = "float64", **changes: Any) -> tuple[Any, Any]:
    """The loss and the gradients of the parameters; next sentences have their map outside the model."""
    model, params, result, ctx = run(reference, dtype, **changes)
    arrays = reference.in_dtype(dtype).arrays
    if "dstates" in arrays:
        return None, model.bwd(BERTResult(arrays["dstates"], arrays["dpooled"]), ctx).params
    logits, of_logits = model.mask_logits_fwd(params, result.states)
    loss, of_loss = aa.cross_entropy_fwd(logits, arrays["labels"])
    head = model.mask_logits_bwd(aa.cross_entropy_bwd(np.ones_like(loss), of_loss).logits, of_logits)
    dpooled = None
    if "next" in arrays:
        name = "param_cls.seq_relationship"
        scores, of_scores = aa.linear_fwd(result.pooled, arrays[f"{name}.weight"], arrays[f"{name}.bias"])
        next_loss, of_next = aa.cross_entropy_fwd(scores, arrays["next"])
        dpooled = aa.linear_bwd(aa.cross_entropy_bwd(np.ones_like(loss), of_next).logits, of_scores).x
        loss = loss + next_loss
    return loss, model.bwd(BERTResult(head.states, dpooled), ctx, head.params).params


@each_reference
@each_dtype
def test_states_and_logits_are_those_of_transformers(reference: Frozen, dtype: str) -> None:
    model, params, result, _ = run(reference, dtype)
    arrays, tolerance = reference.arrays, ROUNDING[dtype]
    mask = arrays["exists"].astype(bool)[:, None, None, :]
    states = model.states(params, arrays["tokens"], arrays["types"], attn_mask=mask)
    assert len(states) == model.num_layers + 1
    for n, state in enumerate(states):
        assert state.dtype == dtype
        assert_close(state, arrays[f"state_{n}"], tolerance, f"state {n}")
    np.testing.assert_array_equal(states[-1], result.states)
    if "pooled" in arrays:
        assert_close(result.pooled, arrays["pooled"], tolerance)
    if "logits" in arrays:
        assert_close(model.mask_logits(params, result.states), arrays["logits"], tolerance)


@each_reference
@each_dtype
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_transformers(reference: Frozen, dtype: str, recompute: bool) -> None:
    loss, grads = gradients(reference, dtype, recompute=recompute)
    if loss is not None:
        assert_close(loss, reference.arrays["loss"], ROUNDING[dtype])
    expected = tree_of(model_of(reference), reference.below("grad_"))
    for path, leaf in tree.flatten(grads):
        wanted = tree.get(expected, path)
        assert_close(leaf, np.zeros_like(leaf) if wanted is None else wanted, ROUNDING[dtype], tree.format_path(path))


@pytest.mark.parametrize("reference", [case for name, case in REFERENCES.items() if "before" not in name])
def test_lengths_say_the_same_as_a_mask(reference: Frozen) -> None:
    exists = reference.arrays["exists"].astype(bool)
    lengths = exists.sum(1)
    assert np.array_equal(exists, np.arange(exists.shape[1]) < lengths[:, None])
    model, params, result, _ = run(reference)
    again = model(params, reference.arrays["tokens"], reference.arrays["types"], lengths=lengths)
    assert_trees_close(again, result, 1e-13)


class Masked:
    """A model with the logits of all tokens beside what it gives, as a layer for gradcheck."""

    def __init__(self, model: BERT) -> None:
        self.model = model

    def __call__(self, params: Any, **options: Any) -> Any:
        return self.fwd(params, **options)[0]

    def fwd(self, params: Any, **options: Any) -> Any:
        result, ctx = self.model.fwd(params, TOKENS, TYPES, **options)
        logits, of_logits = self.model.mask_logits_fwd(params, result.states)
        return (*result, logits), (ctx, of_logits)

    def bwd(self, dout: Any, ctx: Any) -> Any:
        dstates, dpooled, dlogits = dout
        head = self.model.mask_logits_bwd(dlogits, ctx[1])
        return self.model.bwd(BERTResult(dstates + head.states, dpooled), ctx[0], head.params)


DROPPING = dataclasses.replace(SMALL, dropout=0.2, attention_dropout=0.3, activation="silu")
VARIANTS: dict[str, tuple[BERT, dict[str, Any]]] = {
    "padding": (SMALL, {"lengths": [4, 2, 3]}),
    "mask": (SMALL, {"attn_mask": RNG.random((3, 2, 4, 4)) < 0.6}),
    "dropout": (DROPPING, {"rng": aa.Philox(5), "lengths": [4, 1, 4]}),
    "dropout, recomputed": (dataclasses.replace(DROPPING, recompute=True), {"rng": aa.Philox(5)}),
}


@pytest.mark.parametrize(("model", "options"), VARIANTS.values(), ids=list(VARIANTS))
def test_gradients_of_the_whole_model(model: BERT, options: dict[str, Any]) -> None:
    report = aa.gradcheck(Masked(model), PARAMS, **options, max_elements=5)
    assert report, str(report)
    assert {check.name for check in report.inputs} == {f"params.{tree.format_path(p)}" for p, _ in tree.flatten(PARAMS)}


STEP = 1e-4


def test_gradients_along_random_directions() -> None:
    model, params = BERT(31, 12, 16, 3, 4), BERT(31, 12, 16, 3, 4).init(aa.Philox(0), "float64")
    tokens, rng = RNG.integers(31, size=(4, 12)), np.random.default_rng(1)
    cotangent = BERTResult(rng.standard_normal((4, 12, 16)), rng.standard_normal((4, 16)))

    def loss(moved_params: Any) -> float:
        result = model(moved_params, tokens, lengths=[12, 3, 7, 9])
        return sum(float(np.sum(a * b)) for a, b in zip(result, cotangent, strict=True))

    grads = model.bwd(cotangent, model.fwd(params, tokens, lengths=[12, 3, 7, 9])[1]).params
    for _ in range(3):
        direction = tree.map(lambda leaf: rng.standard_normal(leaf.shape), params)
        slope = sum(np.sum(a * b) for (_, a), (_, b) in zip(tree.flatten(grads), tree.flatten(direction), strict=True))
        at = [loss(tree.map(lambda p, d, n=n: p + n * STEP * d, params, direction)) for n in (-2, -1, 1, 2)]
        difference = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * STEP)
        assert abs(difference - slope) < 1e-7 * abs(slope)


def test_dropout_needs_a_generator_and_inference_none() -> None:
    dropping = dataclasses.replace(SMALL, dropout=0.5, attention_dropout=0.5)
    says(ValueError, "`rng` is None, but this BERT needs one in training", lambda: dropping.fwd(PARAMS, TOKENS))
    assert_trees_close(dropping(PARAMS, TOKENS), SMALL(PARAMS, TOKENS), 0)
    first, same, other = (dropping(PARAMS, TOKENS, rng=aa.Philox(n)).states for n in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    np.testing.assert_array_equal(first, dropping.fwd(PARAMS, TOKENS, rng=aa.Philox(1))[0].states)
    assert np.mean(first != other) > 0.5


def test_the_mask_head_takes_some_states_alone() -> None:
    states = SMALL(PARAMS, TOKENS).states
    logits = SMALL.mask_logits(PARAMS, states)
    assert_close(SMALL.mask_logits(PARAMS, states[1, [0, 3]]), logits[1, [0, 3]], 1e-13)


def test_padding_changes_nothing_even_where_it_is_nan() -> None:
    params = tree.map(np.copy, PARAMS)
    params["token"]["weight"][6] = np.nan  # the token that pads
    tokens = np.where(np.arange(4) < 2, TOKENS % 6, 6)
    short, of_short = SMALL.fwd(PARAMS, tokens[:, :2])
    result = SMALL(params, tokens, lengths=[2, 2, 2])
    assert_close(result.states[:, :2], short.states, 1e-13)
    assert_close(result.pooled, short.pooled, 1e-13)
    dpooled = RNG.standard_normal(short.pooled.shape)
    grads = SMALL.bwd(BERTResult(None, dpooled), SMALL.fwd(PARAMS, tokens, lengths=[2, 2, 2])[1])
    assert_trees_close(grads, SMALL.bwd(BERTResult(None, dpooled), of_short), 1e-12)


def test_models_without_heads() -> None:
    bare = dataclasses.replace(SMALL, pooler=False, mask_head=False)
    params = {name: part for name, part in PARAMS.items() if name not in ("pooler", "mask_head")}
    result, ctx = bare.fwd(params, TOKENS)
    assert result.pooled is None
    grads = bare.bwd(BERTResult(np.ones_like(result.states), None), ctx).params
    assert grads.keys() == params.keys()
    says(ValueError, "`mask_head` is False", lambda: bare.mask_logits(params, result.states))
    says(TypeError, "`dout` is BERTResult(states=None, pooled=", lambda: bare.bwd(BERTResult(None, X[:, 0]), ctx))
    assert bare(params, TOKENS[:, :0]).states.shape == (3, 0, 6)
    assert SMALL(PARAMS, TOKENS[:0]).pooled.shape == (0, 6)


X = np.zeros((3, 4, 6))
WRONG: dict[str, tuple[type[Exception], Any, str]] = {
    "long": (ValueError, lambda: SMALL(PARAMS, np.zeros((2, 6), int)),
             "`tokens` has 6 positions, but the model has `max_seq_len` 5. Give"),
    "empty": (ValueError, lambda: SMALL(PARAMS, TOKENS[:, :0]), "`tokens` has shape (3, 0), expected at least one"),
    "axes": (ValueError, lambda: SMALL(PARAMS, TOKENS[0]), "`tokens` has shape (4,), expected (B, T)"),
    "floats": (TypeError, lambda: SMALL(PARAMS, X[..., 0]), "`tokens` has dtype float64, expected an integer dtype"),
    "range": (ValueError, lambda: SMALL(PARAMS, TOKENS + 7), "expected 0 to 6"),
    "types": (ValueError, lambda: SMALL(PARAMS, TOKENS, TYPES[:, :2]), "`types` has shape (3, 2), expected (3, 4)"),
    "type": (ValueError, lambda: SMALL(PARAMS, TOKENS, TYPES + 2), "expected 0 to 1"),
    "mask": (ValueError, lambda: SMALL(PARAMS, TOKENS, attn_mask=TYPES > 0),
             "`attn_mask` has shape (3, 4), expected one that broadcasts to (B, H, T, T). Give"),
    "numbers": (TypeError, lambda: SMALL(PARAMS, TOKENS, attn_mask=TYPES[:, None, None]),
                "`attn_mask` has dtype int64"),
    "lengths": (ValueError, lambda: SMALL(PARAMS, TOKENS, lengths=[4, 5, 1]), "`lengths` holds 5 at"),
    "params": (ValueError, lambda: SMALL({**PARAMS, "head": {}}, TOKENS), "`params` has 'head', which BERT does"),
    "dout": (TypeError, lambda: SMALL.bwd(X, SMALL.fwd(PARAMS, TOKENS)[1]),
             "`dout` is an array of shape (3, 4, 6) and dtype float64, expected BERTResult(states, pooled)"),
    "context": (TypeError, lambda: SMALL.bwd(BERTResult(X, None), None), "expected the BERTContext"),
    "sizes": (ValueError, lambda: BERT(7, 0, 6, 2, 2), "`max_seq_len` is 0, expected an integer >= 1"),
    "heads": (ValueError, lambda: BERT(7, 5, 6, 2, 4), "`num_heads` (4) must divide `dim` (6)"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "call", "expected"), WRONG.values(), ids=list(WRONG))
def test_wrong_input(error: type[Exception], call: Any, expected: str) -> None:
    says(error, expected, call)


def test_every_library_agrees_with_numpy(library: Library) -> None:
    lengths = [4, 2, 3]
    result, ctx = SMALL.fwd(PARAMS, TOKENS, TYPES, lengths=lengths)
    dout = BERTResult(RNG.standard_normal(X.shape), RNG.standard_normal((3, 6)))
    params, tokens, types, moved_dout = library.moved((PARAMS, TOKENS, TYPES, dout))
    theirs, of_theirs = SMALL.fwd(params, tokens, types, lengths=lengths)
    assert_trees_close(theirs, result, 1e-12)
    assert_trees_close(SMALL.bwd(moved_dout, of_theirs), SMALL.bwd(dout, ctx), 1e-11)


def test_the_shape_of_bert_base() -> None:
    base = BERT.base(mask_head=False)
    numbers = sum(int(np.prod(shape)) for shape in flat(base.shapes()))
    assert numbers == 109_482_240  # as published for BertModel
    assert (BERT.large().num_layers, BERT.base(num_layers=2).num_layers, base.dropout) == (24, 2, 0.1)


def flat(shapes: Any) -> list[tuple[int, ...]]:
    parts = shapes.values() if isinstance(shapes, dict) else shapes
    return [shapes] if isinstance(shapes, tuple) else [leaf for part in parts for leaf in flat(part)]

"""GPT: equal to transformers, gradients, padding, dropout, recomputation, the cache, bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.models import GPT, gpt2_names, llama_names
from attnarray.models.gpt.names import Stored
from tests.support.frozen import Frozen, frozen, nested
from tests.support.libraries import Library, assert_close, assert_trees_close
from tests.support.messages import says

ROUNDING = 1e-12  # sums of a few dozen products in another order
CASES = frozen("gpt2.npz")
each_case = pytest.mark.parametrize("name", CASES)
RNG = np.random.default_rng(0)
MODELS: dict[str, GPT] = {
    "GPT-2": GPT(11, 8, 8, 2, 2),
    "LLaMA": GPT(11, 8, 8, 2, 4, 12, positions="rotary", rotary=aa.Rotary(base=30.0), norm="rms", activation="silu",
                 gated=True, bias=False, num_kv_heads=2, tie_embeddings=False),
    "ALiBi": GPT(11, 8, 6, 1, 3, positions="alibi"),
    "no positions": GPT(11, 8, 6, 2, 1, positions="none"),
}  # fmt: skip
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
TOKENS = RNG.integers(11, size=(3, 7))


def fresh(model: GPT, seed: int = 1) -> Any:
    """Parameters that are nowhere 0 or 1, so that wrong gradients show."""
    rng = np.random.default_rng(seed)
    params = model.init(aa.Philox(seed), "float64")
    return tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), params)


def piece(tensor: np.ndarray, stored: Stored) -> np.ndarray:
    """One of our parameters, or its gradient, in a tensor of a checkpoint."""
    return np.split(tensor.T if stored.transposed else tensor, stored.parts)[stored.part]


def unpacked(arrays: dict[str, np.ndarray], model: GPT) -> Any:
    """Our tree of what a checkpoint holds, each tensor read."""
    llama = model.positions == "rotary"
    names = llama_names(model.num_layers) if llama else gpt2_names(model.num_layers)
    prefix, read = "model." if llama else "transformer.", set()
    params: Any = {}
    if not model.tie_embeddings:
        names["logits", "weight"] = Stored("lm_head.weight")
    for path, stored in names.items():
        name = stored.name if stored.name == "lm_head.weight" else prefix + stored.name
        params[tree.format_path(path)] = piece(arrays[name], stored)
        read.add(name)
    assert {name for name in arrays if name.startswith((prefix, "lm_head"))} == read
    return nested(params)


def padding(case: Frozen) -> dict[str, Any]:
    return case.given("starts", "lengths")


@each_case
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_transformers(name: str, dtype: str, tolerance: float) -> None:
    case = CASES[name].in_dtype(dtype)
    model, arrays = GPT(**case.options), case.arrays
    params, exists = unpacked(arrays, model), arrays["exists"]
    logits, ctx = model.fwd(params, arrays["tokens"], **padding(case))
    assert_close(logits * exists[..., None], arrays["logits"], tolerance)
    assert_close(model(params, arrays["tokens"], **padding(case)), logits, 0)
    states = model.states(params, arrays["tokens"], **padding(case))
    assert len(states) == model.num_layers + 1
    for n, state in enumerate(states):
        assert_close(state * exists[..., None], arrays[f"state_{n}"], tolerance)
    loss, of_loss = aa.cross_entropy_fwd(logits[:, :-1], arrays["labels"][:, 1:])
    assert_close(loss, arrays["loss"], tolerance)
    dlogits = np.zeros_like(logits)
    dlogits[:, :-1] = aa.cross_entropy_bwd(np.ones_like(loss), of_loss).logits
    grads, expected = model.bwd(dlogits, ctx).params, unpacked(case.below("grad_"), model)
    assert_trees_close(grads, tree.map(lambda _, e: e, grads, expected), tolerance)


@each_model
@pytest.mark.parametrize("options", [{}, {"starts": [0, 2, 6]}, {"lengths": [7, 3, 1]}], ids=["", "starts", "lengths"])
def test_gradients(model: GPT, options: Any) -> None:
    params = fresh(model)
    report = aa.gradcheck(model, params, TOKENS, **options, max_elements=6)
    assert report, str(report)
    assert {check.name for check in report.inputs} == {f"params.{tree.format_path(p)}" for p, _ in tree.flatten(params)}


@each_model
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_along_random_directions_with_dropout_of_a_fixed_key(model: GPT, recompute: bool) -> None:
    model = dataclasses.replace(model, dropout=0.2, attention_dropout=0.3, recompute=recompute)
    params, rng = fresh(model), aa.Philox(5)
    logits, ctx = model.fwd(params, TOKENS, rng=rng)
    dlogits = RNG.standard_normal(logits.shape)
    grads = model.bwd(dlogits, ctx).params
    for _ in range(3):
        direction = tree.map(lambda leaf: RNG.standard_normal(leaf.shape), params)
        moved = [
            np.sum(model(tree.map(lambda p, d, h=h: p + h * d, params, direction), TOKENS, rng=rng) * dlogits)
            for h in (-2e-4, -1e-4, 1e-4, 2e-4)
        ]
        numeric = (moved[0] - 8 * moved[1] + 8 * moved[2] - moved[3]) / 12e-4
        products = tree.map(lambda g, d: np.sum(g * d), grads, direction)
        assert sum(float(leaf) for _, leaf in tree.flatten(products)) == pytest.approx(numeric, rel=1e-7)
    assert np.mean(model(params, TOKENS, rng=aa.Philox(6)) != logits) > 0.5
    still = dataclasses.replace(model, dropout=0.0, attention_dropout=0.0)
    np.testing.assert_array_equal(model(params, TOKENS), still(params, TOKENS))


def test_recomputing_keeps_less_and_gives_the_same() -> None:
    model = GPT(11, 50, 8, 3, 2)
    again, params = dataclasses.replace(model, recompute=True), fresh(model)
    tokens = RNG.integers(11, size=(2, 50))
    logits, ctx = model.fwd(params, tokens)
    same, of_same = again.fwd(params, tokens)
    np.testing.assert_array_equal(same, logits)
    assert_trees_close(again.bwd(logits, of_same), model.bwd(logits, ctx), 0)
    assert tree.nbytes(of_same) < 0.5 * tree.nbytes(ctx)


@each_model
@pytest.mark.parametrize("options", [{}, {"starts": np.array([0, 2, 5])}], ids=["", "padded"])
@pytest.mark.parametrize("sizes", [(1,) * 7, (4, 3), (7,), (6, 1)], ids=str)
def test_steps_with_a_cache_are_the_whole_run(model: GPT, options: Any, sizes: tuple[int, ...]) -> None:
    params = fresh(model)
    whole = model(params, TOKENS, **options)
    exists = np.arange(7) >= options.get("starts", np.zeros(3))[:, None]
    cache = model.cache(3, dtype="float64", **options)
    assert cache.max_seq_len == 8
    start = 0
    for size in sizes:
        logits, cache = model.step(params, TOKENS[:, start : start + size], cache)
        there = exists[:, start : start + size]
        assert_close(logits[there], whole[:, start : start + size][there], ROUNDING)
        start += size
        assert cache.length == start
    rows = np.array([2, 0, 2])
    cache = model.cache(3, dtype="float64", **options)
    _, cache = model.step(params, TOKENS[:, :-1], cache)
    logits, _ = model.step(params, TOKENS[rows, -1:], cache.rows(rows))
    assert_close(logits, whole[rows, -1:], ROUNDING)
    last, _ = model.step(params, TOKENS, model.cache(3, 7, "float64", **options), last=True)
    assert_close(last, whole[:, -1:], ROUNDING)


@each_model
def test_padding_is_masked(model: GPT) -> None:
    params = fresh(model)
    for b, (row, size) in enumerate(zip(TOKENS, (7, 4, 2), strict=True)):
        alone = model(params, row[None, :size])
        others = RNG.integers(11, size=(3, 7))
        behind, before = others.copy(), others.copy()
        behind[b, :size], before[b, 7 - size :] = row[:size], row[:size]
        lengths = np.array([7, 7, 7])
        lengths[b] = size
        assert_close(model(params, behind, lengths=lengths)[b, :size], alone[0], ROUNDING)
        assert_close(model(params, before, starts=7 - lengths)[b, 7 - size :], alone[0], ROUNDING)
        twice = model(params, before, starts=7 - lengths, attn_mask=np.eye(7, dtype=bool))
        assert np.all(np.isfinite(twice))
        masked = model(params, before, attn_mask=aa.Window(0, None), starts=7 - lengths)
        assert_close(masked, twice, ROUNDING)


def test_later_tokens_do_not_matter() -> None:
    model = MODELS["GPT-2"]
    params, other = fresh(model), TOKENS.copy()
    other[:, 4:] = (other[:, 4:] + 1) % 11
    np.testing.assert_array_equal(model(params, TOKENS)[:, :4], model(params, other)[:, :4])
    assert model(params, TOKENS[:, :0]).shape == (3, 0, 11)
    assert model(params, TOKENS[:0]).shape == (0, 7, 11)


@pytest.mark.parametrize("name", ["GPT-2", "LLaMA", "ALiBi"])
def test_every_library(library: Library, name: str) -> None:
    model = dataclasses.replace(MODELS[name], dropout=0.2, attention_dropout=0.1)
    params, options = fresh(model), {"starts": np.array([0, 2, 5]), "rng": aa.Philox(3)}
    logits, ctx = model.fwd(params, TOKENS, **options)
    moved, tokens = library.moved(params), library.array(TOKENS)
    theirs, of_theirs = model.fwd(moved, tokens, **options)
    assert_close(theirs, logits, ROUNDING)
    assert_trees_close(model.bwd(theirs, of_theirs).params, model.bwd(logits, ctx).params, 1e-10)  # of larger sums


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 4e-2)])  # a few roundings of each
@each_model
def test_16_bit_parameters(model: GPT, dtype: str, tolerance: float) -> None:
    params = tree.map(lambda leaf: aa.asarray(leaf, dtype), model.init(aa.Philox(0)))
    wide = tree.map(lambda leaf: leaf.astype(np.float64), params)
    logits, ctx = model.fwd(params, TOKENS, starts=[0, 2, 5])
    assert logits.dtype == params["token"]["weight"].dtype
    expected, of_expected = model.fwd(wide, TOKENS, starts=[0, 2, 5])
    assert_close(logits, expected, tolerance)
    assert_trees_close(model.bwd(logits, ctx).params, model.bwd(expected, of_expected).params, tolerance)


def test_the_beginning_is_that_of_gpt2() -> None:
    params = GPT(300, 64, 64, 8, 4).init(aa.Philox(0))
    deviations = {path: float(np.std(leaf)) for path, leaf in tree.flatten(params) if path[-1] == "weight"}
    for path, found in deviations.items():
        expected = 0.0 if "norm" in path[-2] else 0.02 / 4 if path[-2] == "out" else 0.02
        assert found == pytest.approx(expected, rel=0.1), path


@pytest.mark.parametrize(("name", "millions"), [("small", 124), ("medium", 355), ("large", 774), ("xl", 1558)])
def test_sizes_of_gpt2(name: str, millions: int) -> None:
    model = getattr(GPT, name)(dropout=0.1)
    numbers = sum(np.prod(shape) for shape in leaves(model.shapes()))
    assert round(numbers / 1e6) == millions
    assert model.dropout == 0.1
    assert model.shapes().keys() == {"token", "position", "blocks", "norm"}


def leaves(shapes: Any) -> Any:
    for value in shapes.values() if isinstance(shapes, dict) else shapes:
        yield from leaves(value) if isinstance(value, dict | list) else [value]


MODEL = MODELS["GPT-2"]
PARAMS = fresh(MODEL)
BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "too long": (ValueError, "`tokens` needs 9 positions, but the model has `max_seq_len` 8. Give shorter",
                 lambda: MODEL(PARAMS, np.zeros((1, 9), int))),
    "cache too long": (ValueError, "The cache needs 9 positions, but the model has", lambda: MODEL.cache(1, 9)),
    "token": (ValueError, "`tokens` holds 11 at position (0, 0), expected 0 to 10",
              lambda: MODEL(PARAMS, TOKENS * 0 + 11)),
    "rows below": (ValueError, "`rows` holds -1 at position (1,), expected 0 to 2 (the sequences of the cache: 3).",
                   lambda: MODEL.cache(3).rows(np.array([0, -1]))),
    "rows above": (ValueError, "`rows` holds 3 at position (0,), expected 0 to 2",
                   lambda: MODEL.cache(3).rows(np.array([3]))),
    "floats": (TypeError, "`tokens` has dtype float64, expected an integer dtype", lambda: MODEL(PARAMS, TOKENS * 1.0)),
    "one axis": (ValueError, "`tokens` has shape (7,), expected (B, T): sequences", lambda: MODEL(PARAMS, TOKENS[0])),
    "a list": (TypeError, "`tokens` has type list, expected an array of integers.", lambda: MODEL(PARAMS, [[1, 2]])),
    "mask": (ValueError, "`attn_mask` has shape (3, 7), which does not broadcast",
             lambda: MODEL(PARAMS, TOKENS, attn_mask=np.ones((3, 7), bool))),
    "mask dtype": (TypeError, "`attn_mask` has dtype int64, expected bool",
                   lambda: MODEL(PARAMS, TOKENS, attn_mask=TOKENS)),
    "starts": (ValueError, "`starts` holds 8 at position (1,), expected 0 to 7",
               lambda: MODEL(PARAMS, TOKENS, starts=[0, 8, 0])),
    "starts shape": (ValueError, "`starts` has shape (2,), expected (3,): the length of the left padding",
                     lambda: MODEL(PARAMS, TOKENS, starts=[0, 0])),
    "params": (ValueError, "`params` lacks 'norm', which GPT needs.",
               lambda: MODEL({**{n: p for n, p in PARAMS.items() if n != "norm"}}, TOKENS)),
    "context": (TypeError, "expected the GPTContext that the forward pass", lambda: MODEL.bwd(np.ones(3), None)),
    "cotangent": (ValueError, "`dlogits` has shape (3,), expected (3, 7, 11)",
                  lambda: MODEL.bwd(np.ones(3), MODEL.fwd(PARAMS, TOKENS)[1])),
    "cache": (TypeError, "`cache` is None, expected the GPTCache", lambda: MODEL.step(PARAMS, TOKENS, None)),
    "full cache": (ValueError, "`cache` has `max_seq_len` 3, holds 0 positions and was given 7 more.",
                   lambda: MODEL.step(PARAMS, TOKENS, MODEL.cache(3, 3, "float64"))),
    "another batch": (ValueError, "`tokens` has 3 sequences, but `cache` has 2.",
                      lambda: MODEL.step(PARAMS, TOKENS, MODEL.cache(2))),
    "no room": (ValueError, "`max_seq_len` is 0, expected an integer >= 1: the largest", lambda: MODEL.cache(1, 0)),
    "no rng": (ValueError, "`rng` is None, but this GPT needs one in training, for dropout or sampling: pass",
               lambda: dataclasses.replace(MODEL, dropout=0.1).fwd(PARAMS, TOKENS)),
    "positions": (ValueError, "`positions` is 'sine', expected one of 'learned', 'rotary'",
                  lambda: GPT(11, 8, 8, 2, 2, positions="sine")),
    "rotary": (ValueError, "`rotary` is given, but `positions` is 'learned'",
               lambda: GPT(11, 8, 8, 2, 2, rotary=aa.Rotary())),
    "sizes": (ValueError, "`max_seq_len` is 0, expected an integer >= 1", lambda: GPT(11, 0, 8, 2, 2)),
    "blocks by texts": (TypeError, "`params.blocks` is a dict with 0, 1, expected a list of 2, as GPT.init makes it.",
                        lambda: MODEL({**PARAMS, "blocks": dict(enumerate(PARAMS["blocks"]))}, TOKENS)),
    "a block too few": (TypeError, "`params.blocks` is a list of 1, expected a list of 2",
                        lambda: MODEL({**PARAMS, "blocks": PARAMS["blocks"][:1]}, TOKENS)),
    "a block without norm": (ValueError, "`params.blocks.1` lacks 'attention_norm'", lambda: MODEL(
        tree.replace(PARAMS, ("blocks", 1), {k: v for k, v in PARAMS["blocks"][1].items() if k != "attention_norm"}),
        TOKENS)),
    "heads": (ValueError, "`num_heads` (3) must divide `dim` (8)", lambda: GPT(11, 8, 8, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize(("error", "expected", "call"), BAD.values(), ids=list(BAD))
def test_bad_input(error: type[Exception], expected: str, call: Any) -> None:
    says(error, expected, call)

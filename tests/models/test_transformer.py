"""Encoder, decoder and Transformer: PyTorch's numbers, gradients, steps against whole runs, dropout, bad input."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.models import Decoder, Encoder, Transformer
from tests.support.frozen import Frozen, frozen, nested
from tests.support.libraries import STRICT, Library, assert_close, assert_trees_close
from tests.support.messages import says
from tests.support.tiers import slow

RNG = np.random.default_rng(0)
X, MEMORY = RNG.standard_normal((2, 5, 8)), RNG.standard_normal((2, 3, 8))
SOURCE = np.array([[4, 2, 7, 7, 1], [3, 10, 5, 0, 0], [6, 6, 1, 2, 0]])
TARGET = np.array([[1, 5, 6, 2], [1, 8, 2, 0], [1, 1, 3, 4]])
LENGTHS = np.array([5, 3, 4])
ROUNDING = 1e-12  # sums of a few dozen products in another order
PYTORCH = {"float64": 1e-10, "float32": 1e-5}  # ten layers of sums in another order; PyTorch's own float32 is at 2e-6
KINDS: dict[str, Any] = {"encoder": Encoder, "decoder": Decoder, "model": Transformer}
MODELS = {
    "as in the paper": Transformer(11, 9, 6, 8, 2, 2, 12, dropout=0.0),
    "pre-norm": Transformer(11, 9, 6, 8, 2, 4, pre_norm=True, activation="gelu", dropout=0.0),
    "learned": Transformer(11, 9, 6, 8, 1, 2, positions="learned", tie_embeddings=False, dropout=0.0, final_norm=True),
}


@cache
def references() -> dict[str, Frozen]:
    return frozen("transformer.npz")


def moved(params: Any) -> Any:
    """Parameters that are nowhere 0 or 1, so that wrong gradients show."""
    return tree.map(lambda leaf: leaf + 0.3 * RNG.standard_normal(leaf.shape), params)


@pytest.mark.parametrize("dtype", list(PYTORCH))
@pytest.mark.parametrize("name", list(references()))
def test_it_equals_pytorch(name: str, dtype: str) -> None:
    kind, reference = name.split(",")[0], references()[name].in_dtype(dtype)
    arrays, sizes = reference.arrays, {} if kind != "model" else {"source_vocab_size": 11, "target_vocab_size": 9}
    model = KINDS[kind](**sizes, **reference.options, **({} if not sizes else {"max_seq_len": 6, "dropout": 0.0}))
    params = nested(reference.below("params."))
    given = reference.given("x", "source", "target", "memory")
    masks = ("attn_mask", "kv_lengths", "memory_mask", "memory_lengths", "source_lengths", "target_lengths")
    options: dict[str, Any] = reference.given(*masks)
    if kind == "decoder":
        options["is_causal"] = False
    out, ctx = model.fwd(params, *given.values(), **options)
    assert out.dtype == dtype
    assert_close(out, arrays["out"], PYTORCH[dtype], "out")
    expected = reference.below("states.")
    states = model.states(params, *given.values(), **options) if expected else []
    assert_trees_close(states, list(expected.values()), PYTORCH[dtype])
    grads = model.bwd(arrays["dout"], ctx)
    for path, grad in tree.flatten(grads):
        assert_close(grad, arrays[f"grad_{tree.format_path(path)}"], PYTORCH[dtype], tree.format_path(path))
    assert len(tree.flatten(grads)) == len(reference.below("grad_"))


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
@pytest.mark.parametrize("recompute", [slow(False), True])
def test_gradients_of_the_whole_model(model: Transformer, recompute: bool) -> None:
    model = dataclasses.replace(model, dropout=0.1, attention_dropout=0.2, recompute=recompute, activation="gelu")
    params = moved(model.init(aa.Philox(1), "float64"))
    options = {"source_lengths": LENGTHS, "target_lengths": [4, 2, 4], "rng": aa.Philox(7)}
    # Differences lose some digits over so many layers.
    report = aa.gradcheck(model, params, SOURCE, TARGET, **options, max_elements=2, tolerance=1e-6)
    assert report, str(report)
    assert {check.name for check in report.inputs} == {f"params.{tree.format_path(p)}" for p, _ in tree.flatten(params)}


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_gradients_along_random_directions(model: Transformer) -> None:
    # GELU has no kink that a step could cross.
    model = dataclasses.replace(model, activation="gelu")
    params = moved(model.init(aa.Philox(1), "float64"))
    logits, ctx = model.fwd(params, SOURCE, TARGET, source_lengths=LENGTHS)
    dlogits = RNG.standard_normal(logits.shape)
    grads = model.bwd(dlogits, ctx).params
    for _ in range(3):
        direction = tree.map(lambda leaf: RNG.standard_normal(leaf.shape), params)
        slope = sum(np.sum(g * d) for (_, g), (_, d) in zip(tree.flatten(grads), tree.flatten(direction), strict=True))
        found = 0.0
        for steps, weight in ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12)):
            there = tree.map(lambda leaf, d, steps=steps: leaf + steps * 1e-4 * d, params, direction)
            found += weight * np.sum(dlogits * model(there, SOURCE, TARGET, source_lengths=LENGTHS)) / 1e-4
        assert abs(found - slope) < 1e-6 * max(1.0, abs(slope))  # as above


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 1), (4,)])
def test_steps_are_the_whole_run(model: Transformer, sizes: tuple[int, ...]) -> None:
    params = moved(model.init(aa.Philox(2), "float64"))
    whole = model(params, SOURCE, TARGET, source_lengths=LENGTHS)
    known, steps = model.cache(params, SOURCE, 4, source_lengths=LENGTHS), []
    for part in np.split(TARGET, np.cumsum(sizes)[:-1], axis=1):
        logits, known = model.step(params, part, known)
        steps.append(logits)
    assert_close(np.concatenate(steps, axis=1), whole, ROUNDING)
    assert known.length == 4


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_greedy_writes_the_most_likely_tokens(model: Transformer) -> None:
    params = moved(model.init(aa.Philox(3), "float64"))
    written = np.ones((3, 1), int)
    for _ in range(6):
        logits = model(params, SOURCE, written, source_lengths=LENGTHS)
        written = np.concatenate([written, logits[:, -1:].argmax(-1)], axis=1)
    found = model.greedy(params, SOURCE, 1, 6, source_lengths=LENGTHS)
    np.testing.assert_array_equal(found, written[:, 1:])
    end = int(found[0, 2])
    stopped = model.greedy(params, SOURCE, 1, 6, end=end, source_lengths=LENGTHS)
    for row, all_of_it in zip(stopped, found, strict=True):
        first = [*all_of_it, end].index(end)
        np.testing.assert_array_equal(row, [*all_of_it[:first], *[end] * (stopped.shape[1] - first)])
    assert model.greedy(params, SOURCE, 1, 0).shape == (3, 0)


def test_padding_and_the_future_are_masked() -> None:
    model = MODELS["as in the paper"]
    params = moved(model.init(aa.Philox(4), "float64"))
    logits = model(params, SOURCE, TARGET, source_lengths=LENGTHS)
    other = np.where(np.arange(5) < LENGTHS[:, None], SOURCE, 9)
    np.testing.assert_array_equal(model(params, other, TARGET, source_lengths=LENGTHS), logits)
    changed = model(params, SOURCE, np.where(np.arange(4) < 2, TARGET, 0), source_lengths=LENGTHS)
    assert_close(changed[:, :2], logits[:, :2], ROUNDING)
    poisoned = np.where(np.arange(5)[:, None] < LENGTHS[:2, None, None], X, np.nan)  # (2, 5, 8): 5 and 3 are there
    encoder = Encoder(8, 2, 2)
    of_encoder = moved(encoder.init(aa.Philox(0), "float64"))
    y, clean = (encoder(of_encoder, x, kv_lengths=LENGTHS[:2]) for x in (poisoned, X))
    np.testing.assert_array_equal(y[1, :3], clean[1, :3])


def test_dropout_is_drawn_by_the_key() -> None:
    model = dataclasses.replace(MODELS["as in the paper"], dropout=0.3, hidden_dropout=0.1)
    params = model.init(aa.Philox(0))
    logits = model.fwd(params, SOURCE, TARGET, rng=aa.Philox(5))[0]
    np.testing.assert_array_equal(model(params, SOURCE, TARGET, rng=aa.Philox(5)), logits)
    assert np.mean(model(params, SOURCE, TARGET, rng=aa.Philox(6)) != logits) > 0.9
    plain = dataclasses.replace(model, dropout=0.0, hidden_dropout=0.0)
    np.testing.assert_array_equal(model(params, SOURCE, TARGET), plain(params, SOURCE, TARGET))
    for broken, inputs in ((model, (SOURCE, TARGET)), (Encoder(8, 2, 2, dropout=0.1), (X,))):
        own = broken.init(aa.Philox(0), "float64")  # type: ignore[attr-defined]
        expected = (
            "`rng` is None, but this " + type(broken).__name__ + " needs one in training, for dropout or sampling: pass"
        )
        says(ValueError, expected, lambda broken=broken, own=own, inputs=inputs: broken.fwd(own, *inputs))


def test_results_are_equal_on_every_library(library: Library) -> None:
    model = MODELS["learned"]
    params = model.init(aa.Philox(0), "float64")
    source, target, lengths, mine = (library.moved(each) for each in (SOURCE, TARGET, LENGTHS, params))
    logits, ctx = model.fwd(params, SOURCE, TARGET, source_lengths=LENGTHS)
    found, its = model.fwd(mine, source, target, source_lengths=lengths)
    assert_close(found, logits, ROUNDING)
    assert_trees_close(model.bwd(found, its), model.bwd(logits, ctx), 1e-11)
    if library != STRICT:  # a cache is written in place, which the standard does not guarantee on other devices
        expected = model.greedy(params, SOURCE, 1, 4, end=3, source_lengths=LENGTHS)
        assert_close(model.greedy(mine, source, 1, 4, end=3, source_lengths=lengths), expected, 0)


def test_bad_input_is_named() -> None:
    model = MODELS["as in the paper"]
    params = model.init(aa.Philox(0), "float64")
    bad: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "`source` needs 7 positions, but the model has `max_seq_len` 6. Give",
         lambda: model(params, np.zeros((1, 7), int), TARGET[:1])),
        (ValueError, "`target` has shape (4,), expected two axes: (B, T).", lambda: model(params, SOURCE, TARGET[0])),
        (TypeError, "`source` has dtype float64, expected an integer", lambda: model(params, SOURCE / 2, TARGET)),
        (ValueError, "holds 11 at position (0, 1), expected 0 to 10",
         lambda: model(params, np.array([[0, 11]]), TARGET)),
        (ValueError, "`params` lacks 'source', 'target', 'encoder', 'decoder', which Transf",
         lambda: model({}, SOURCE, TARGET)),
        (ValueError, "`count` is 9, expected an integer from 0 to 6", lambda: model.greedy(params, SOURCE, 1, 9)),
        (ValueError, "`positions` is 'rope', expected one of 'sinusoidal', 'lea",
         lambda: dataclasses.replace(model, positions="rope")),
        (ValueError, "`dim` is 9, expected an even number for sinusoidal", lambda: Transformer(5, 5, 6, 9, 1, 3)),
        (ValueError, "`num_layers` is 0, expected an integer >= 1: the number of blocks.", lambda: Encoder(8, 0, 2)),
        (ValueError, "`x` has 7 features, but Encoder has `dim` 8: expected (*batch, positions, 8), given (2, 3, 7).",
         lambda: Encoder(8, 2, 2)(Encoder(8, 2, 2).init(aa.Philox(0), "float64"), np.ones((2, 3, 7)))),
        (TypeError, "`ctx` is None, expected the TransformerContext that", lambda: model.bwd(X, None)),  # type: ignore[arg-type]
        (TypeError, "`cache` is None, expected the TransformerCache", lambda: model.step(params, TARGET, None)),  # type: ignore[arg-type]
    ]  # fmt: skip
    for error, expected, call in bad:
        says(error, expected, call)


def test_blocks_check_their_cache() -> None:
    decoder, encoder = Decoder(8, 1, 2), Encoder(8, 1, 2)
    params = decoder.init(aa.Philox(0), "float64")
    own = params["blocks"][0]
    plain = decoder.block.parts()["attention"].cache(2, 4, "float64")
    says(
        TypeError,
        "`cache` is a KVCache, expected one from decoder_cache: the block has cross=True.",
        lambda: decoder.block.step(own, X[:, :1], plain),
    )
    says(ValueError, "`memory` is given, but the block was made with cross=False",
         lambda: encoder.block.decoder_cache(encoder.block.init(aa.Philox(0), "float64"), MEMORY, 3))  # fmt: skip
    says(ValueError, "`memory` is an array of shape (3, 8) and dtype float64, expected an array (B, S, E).",
         lambda: decoder.cache(params, MEMORY[0], 3))  # fmt: skip

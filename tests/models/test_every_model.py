"""All models: errors that name the path or the input, batches in parts, recomputation."""

from __future__ import annotations

import copy
import dataclasses
import tracemalloc
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray import optim, tree
from attnarray.models import BERT, GPT, BERTResult, PatchClassifier, Seq2Seq, Transformer, TransformerXL, generate
from tests.support.messages import says

RNG = np.random.default_rng(5)
ROWS, S, T = 8, 7, 5
SOURCE, TARGET = RNG.integers(11, size=(ROWS, S)), RNG.integers(9, size=(ROWS, T))
IMAGES, CLASSES = RNG.standard_normal((ROWS, 4, 6)), RNG.integers(3, size=ROWS)


class Example(NamedTuple):
    """A model, its inputs, and its targets; all have one row for each sequence or image."""

    model: Any
    inputs: dict[str, np.ndarray]
    answers: np.ndarray


PAIR = {"source": SOURCE, "target": TARGET}
BAHDANAU = aa.layers.BahdanauAttention(query_dim=6, key_dim=6, hidden_dim=5)
EXAMPLES = {
    "GPT": Example(GPT(11, S, 8, 2, 2), {"tokens": SOURCE}, np.roll(SOURCE, 1)),
    "LLaMA": Example(GPT(11, S, 8, 2, 4, positions="rotary", norm="rms", activation="silu", gated=True, bias=False,
                         num_kv_heads=2, tie_embeddings=False), {"tokens": SOURCE}, np.roll(SOURCE, 1)),
    "BERT": Example(BERT(11, S, 8, 2, 2), {"tokens": SOURCE}, np.roll(SOURCE, 1)),
    "Transformer": Example(Transformer(11, 9, S, 8, 2, 2, dropout=0.0), PAIR, TARGET),
    "TransformerXL": Example(TransformerXL(11, memory=3, dim=8, num_layers=2, num_heads=2, dropout=0.0),
                             {"tokens": SOURCE}, np.roll(SOURCE, 1)),
    "Seq2Seq": Example(Seq2Seq(11, 9, dim=4, hidden_dim=6, attention=BAHDANAU), PAIR, TARGET),
    "PatchClassifier": Example(PatchClassifier((4, 6), 2, 3, dim=8, num_layers=2, num_heads=2),
                               {"images": IMAGES}, CLASSES),
}  # fmt: skip
each_model = pytest.mark.parametrize("example", EXAMPLES.values(), ids=list(EXAMPLES))


def gradients(model: Any, params: Any, inputs: dict[str, Any], answers: Any) -> Any:
    """Gradients of the mean cross-entropy of the targets."""
    out, ctx = model.fwd(params, *inputs.values())
    if isinstance(model, BERT):
        logits, of_logits = model.mask_logits_fwd(params, out.states)
        head = model.mask_logits_bwd(dlogits(logits, answers), of_logits)
        return model.bwd(BERTResult(head.states, np.ones_like(out.pooled) / len(answers)), ctx, head.params).params
    return model.bwd(dlogits(getattr(out, "logits", out), answers), ctx).params


def dlogits(logits: Any, answers: Any) -> Any:
    loss, ctx = aa.cross_entropy_fwd(logits, answers)
    return aa.cross_entropy_bwd(np.ones_like(loss), ctx).logits


@each_model
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_large_batch_is_the_mean_of_small_ones(example: Example, size: int) -> None:
    model, params = example.model, example.model.init(aa.Philox(0), "float64")
    whole = gradients(model, params, example.inputs, example.answers)
    total, parts = None, range(0, ROWS, size)
    for start in parts:
        rows = slice(start, start + size)
        own = gradients(model, params, {n: x[rows] for n, x in example.inputs.items()}, example.answers[rows])
        total = own if total is None else tree.add(total, own)
    mean = tree.map(lambda leaf: leaf / len(parts), total)
    largest = max(np.max(np.abs(leaf)) for _, leaf in tree.flatten(whole))
    for (path, one), (_, other) in zip(tree.flatten(mean), tree.flatten(whole), strict=True):
        # float64, and sums of a few hundred terms in another order
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14 * largest, err_msg=tree.format_path(path))


DEEP = {
    "GPT": GPT(11, 64, 32, 6, 4),
    "BERT": BERT(11, 64, 32, 6, 4),
    "Transformer": Transformer(11, 11, 64, 32, 6, 4, dropout=0.0),
    "PatchClassifier": PatchClassifier(16, 2, 11, dim=32, num_layers=6, num_heads=4),
}


@pytest.mark.parametrize("model", DEEP.values(), ids=list(DEEP))
def test_recomputation_takes_less_memory(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNARRAY_NUM_THREADS", "1")  # the peak of several threads depends on their timing
    rng, params = np.random.default_rng(0), model.init(aa.Philox(0))
    tokens = rng.integers(11, size=(4, 64))
    inputs = {"tokens": tokens, "target": tokens} if isinstance(model, Transformer) else {"tokens": tokens}
    answers = tokens
    if isinstance(model, PatchClassifier):
        inputs, answers = {"images": rng.standard_normal((4, 16, 16), np.float32)}, tokens[:, 0]

    def peak(recompute: bool) -> int:
        """The peak memory of NumPy and Python during one forward and backward, in bytes."""
        chosen = dataclasses.replace(model, recompute=recompute)
        gradients(chosen, params, inputs, answers)  # kernels are compiled
        tracemalloc.start()
        try:
            gradients(chosen, params, inputs, answers)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # Only one of six blocks has its context at a time, besides the gradients.
    assert peak(True) < 0.6 * peak(False)


def changed(params: Any, path: tree.Path, value: Any) -> Any:
    """Parameters with another entry at a path; None takes it away."""
    found = copy.deepcopy(params)
    node = found
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    if value is None:
        del node[path[-1]]
    return found


@each_model
def test_every_wrong_parameter_is_named_by_its_path(example: Example) -> None:
    model = example.model
    params, inputs = model.init(aa.Philox(0)), tuple(example.inputs.values())
    for path, _ in tree.flatten(params):
        above, place = tree.format_path(("params", *path[:-1])), tree.format_path(("params", *path))
        says(ValueError, f"`{above}` lacks '{path[-1]}', which {type(model).__name__} needs.",
             lambda path=path: model(changed(params, path, None), *inputs))  # fmt: skip
        says(ValueError, f"`{place}` has shape (2, 3, 1), expected (",
             lambda path=path: model.fwd(changed(params, path, np.ones((2, 3, 1), np.float32)), *inputs))  # fmt: skip
        says(ValueError, f"`{above}` has 'more', which {type(model).__name__} does not know",
             lambda path=path: model(changed(params, (*path[:-1], "more"), np.ones(2)), *inputs))  # fmt: skip
    says(TypeError, "`params` is [], expected a dict with ", lambda: model([], *inputs))


OF_TOKENS = [(name, which) for name, example in EXAMPLES.items() for which in example.inputs if which != "images"]


@pytest.mark.parametrize(("name", "which"), OF_TOKENS, ids=["-".join(each) for each in OF_TOKENS])
def test_tokens_out_of_range(name: str, which: str) -> None:
    model, inputs, _ = EXAMPLES[name]
    params, count = model.init(aa.Philox(0)), 9 if which == "target" else 11
    for wrong in (count, -1):
        tokens = inputs[which].copy()
        tokens[2, 3] = wrong
        given = tuple({**inputs, which: tokens}.values())
        for call in (model, model.fwd):
            says(ValueError, f"`{which}` holds {wrong} at position (2, 3), expected 0 to {count - 1} (the vocabulary",
                 lambda call=call, given=given: call(params, *given))  # fmt: skip


def test_sequences_longer_than_the_positions() -> None:
    for name in ("GPT", "BERT", "Transformer"):
        model, inputs, _ = EXAMPLES[name]
        params = model.init(aa.Philox(0))
        for which in inputs:
            given = {**inputs, which: np.zeros((ROWS, S + 1), np.int64)}.values()
            says(ValueError, f"{S + 1} p", lambda model=model, params=params, given=given: model(params, *given))
    model = EXAMPLES["GPT"].model
    says(ValueError, f"{S + 1} positions, but the model has `max_seq_len` {S}",
         lambda: generate(model, model.init(aa.Philox(0)), SOURCE[:, :4], S - 2))  # fmt: skip


MASKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "GPT, mask": ("GPT", {"attn_mask": np.ones((S, S + 1), bool)}, f"`attn_mask` has shape ({S}, {S + 1}), which does"),
    "BERT, mask": ("BERT", {"attn_mask": np.ones((2, 1, S, S), bool)}, f"`attn_mask` has shape (2, 1, {S}, {S}), whi"),
    "GPT, lengths": ("GPT", {"lengths": [S] * 3}, "`lengths` has shape (3,), expected (8,): the length of each"),
    "BERT, lengths": ("BERT", {"lengths": [S] * 7 + [S + 1]}, f"`lengths` holds {S + 1} at position (7,), expected 0 "),
    "Transformer, source": ("Transformer", {"source_lengths": [S] * 3}, "`source_lengths` has shape (3,), expected"),
    "Transformer, target": ("Transformer", {"target_lengths": [T + 1] * 8}, f"`target_lengths` holds {T + 1} at pos"),
    "Seq2Seq": ("Seq2Seq", {"source_lengths": [-1] * 8}, "`source_lengths` holds -1 at position (0,), expected 0 to"),
}


@pytest.mark.parametrize(("name", "wrong", "expected"), MASKS.values(), ids=list(MASKS))
def test_masks_and_lengths_that_do_not_fit(name: str, wrong: Any, expected: str) -> None:
    model, inputs, _ = EXAMPLES[name]
    params = model.init(aa.Philox(0))
    for call in (model, model.fwd):
        says(ValueError, expected, lambda call=call: call(params, *inputs.values(), **wrong))


@each_model
def test_a_step_of_training_leaves_what_it_was_given(example: Example) -> None:
    params = example.model.init(aa.Philox(0), "float64")
    state = optim.adamw_init(params)
    before = copy.deepcopy((params, state, example.inputs))
    optim.adamw(params, gradients(example.model, params, example.inputs, example.answers), state, lr=0.1)
    for (path, one), (_, other) in zip(*map(tree.flatten, (before, (params, state, example.inputs))), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=tree.format_path(path))

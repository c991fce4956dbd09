"""The demo with every mechanism: gradients of whole models, masks, step by step against whole runs, training, --all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray import cli, tree
from attnarray.demo import ATTENTIONS, comparison, dates, lesson, run, training
from attnarray.demo.mechanisms import MECHANISMS
from attnarray.demo.model import Model, most_likely
from attnarray.layers.initial import Params
from attnarray.ops.loss import cross_entropy_bwd, cross_entropy_fwd

pytest.importorskip("babel")

STENCIL = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))


class Small(NamedTuple):
    """One mechanism with a few dates."""

    name: str
    model: Model
    data: training.Data
    params: Params

    def loss(self, params: Params, rows: np.ndarray) -> float:
        tokens, lengths, targets = self.data.batch(rows)
        return float(cross_entropy_fwd(self.model.forward(params, tokens, lengths, targets)[0], targets)[0])

    def grads(self, params: Params, rows: np.ndarray) -> Params:
        tokens, lengths, targets = self.data.batch(rows)
        logits, ctx = self.model.forward(params, tokens, lengths, targets)
        loss, loss_ctx = cross_entropy_fwd(logits, targets)
        return self.model.backward(cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, ctx, params)


@pytest.fixture(scope="module", params=ATTENTIONS)
def small(request: Any) -> Small:
    train, _ = dates.make_pairs(300, 0, seed=3)
    prepared = lesson.prepare(train, train[:5])
    model = MECHANISMS[request.param].model
    return Small(request.param, model, prepared.learned, prepared.fresh(model, 1))


def leaves(params: Params) -> Iterator[tuple[str, np.ndarray]]:
    return ((tree.format_path(path), leaf) for path, leaf in tree.flatten(params))


def test_every_name_has_a_model() -> None:
    assert tuple(MECHANISMS) == ATTENTIONS


def test_gradients_of_the_whole_model_along_random_directions(small: Small) -> None:
    rows, rng = np.array([0, 5, 7]), np.random.default_rng(0)
    # Parameters that start at 0 are moved, so that no gradient is 0 because of them.
    params = tree.map(lambda leaf: leaf.astype(np.float64) + 0.02 * rng.standard_normal(leaf.shape), small.params)
    grads = dict(leaves(small.grads(params, rows)))
    assert grads.keys() == dict(leaves(params)).keys()
    step = 1e-5  # small, so that no hidden unit of the ReLU of multi-head crosses its kink within it
    for name, leaf in leaves(params):
        direction = rng.standard_normal(leaf.shape)
        numeric = sum(
            weight / step * small.loss(_moved(params, name, offset * step * direction), rows)
            for offset, weight in STENCIL
        )
        analytic = float(np.sum(grads[name] * direction))
        # Losses of about 2.4 are good to 5e-16, so differences over 1e-5 to about 1e-10.
        assert abs(analytic - numeric) <= 1e-6 * max(abs(numeric), 1e-3), (name, analytic, numeric)


def _moved(params: Params, name: str, by: np.ndarray) -> Params:
    return {
        key: (_moved(child, name.removeprefix(f"{key}."), by) if isinstance(child, dict) else child + by)
        if name.split(".")[0] == key
        else child
        for key, child in params.items()
    }


def test_gradients_have_the_tree_of_the_parameters(small: Small) -> None:
    grads = small.grads(small.params, np.arange(4))
    tree.map(lambda p, g: np.testing.assert_equal((p.shape, p.dtype), (g.shape, g.dtype)), small.params, grads)


def test_padding_changes_neither_logits_nor_gradients_of_other_rows(small: Small) -> None:
    rows = np.argsort(small.data.lengths)[[0, -1]]
    tokens, lengths, targets = small.data.batch(rows)
    short = small.model.forward(small.params, *small.data.batch(rows[:1]))[0]
    padded, ctx = small.model.forward(small.params, tokens, lengths, targets)
    np.testing.assert_allclose(short[0], padded[0], atol=2e-5)  # float32 sums in another order
    weights = small.model.alignments(ctx)
    assert weights.shape == (2, 10, tokens.shape[1])
    assert np.all(weights[0, :, lengths[0] :] == 0)
    sums = weights.sum(axis=-1)
    assert np.all((sums > 0.3) & (sums < 1)) if small.name == "local" else np.allclose(sums, 1, atol=1e-5)


def test_a_translation_step_by_step_equals_the_whole_run(small: Small) -> None:
    tokens, lengths, _ = small.data.batch(np.arange(100))
    rng = np.random.default_rng(0)
    # Far from initial parameters, so that the outputs depend on all states.
    params = tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape, dtype=np.float32), small.params)
    found = small.model.predict(params, tokens, lengths)
    assert found.shape == (100, 10)
    logits = small.model.forward(params, tokens, lengths, found)[0]
    assert np.array_equal(most_likely(logits), found)


def test_no_character_is_predicted_from_itself_or_later_ones(small: Small) -> None:
    tokens, lengths, targets = small.data.batch(np.arange(5))
    changed = targets.copy()
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    one, other = (small.model.forward(small.params, tokens, lengths, told)[0] for told in (targets, changed))
    assert np.array_equal(one[:, :7], other[:, :7])


def test_hard_attention_draws_in_training_alone() -> None:
    train, _ = dates.make_pairs(70, 0, seed=3)
    prepared = lesson.prepare(train, train[:5])
    model = MECHANISMS["hard"].model
    params, batch = prepared.fresh(model, 0), prepared.learned.batch(np.arange(8))
    seeds = [None, None, aa.Philox(1), aa.Philox(1), aa.Philox(2)]
    first, again, drawn, same, other = (model.forward(params, *batch, rng)[0] for rng in seeds)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(drawn, same)
    assert np.any(drawn != first)
    assert np.any(drawn != other)
    grads = model.backward(np.ones_like(drawn), model.forward(params, *batch, seeds[2])[1], params)
    assert np.any(grads["attention"]["query"]["weight"])  # straight through
    grads = model.backward(np.ones_like(first), model.forward(params, *batch)[1], params)
    assert not np.any(grads["attention"]["query"]["weight"])  # the most likely one stays so


def test_training_lowers_the_loss(small: Small) -> None:
    losses: list[float] = []
    list(training.train(small.model, small.data, small.params, 4, 0, lambda loss, _: losses.append(loss)))
    assert len(losses) == training.step_count(300, 4)
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_other_libraries_agree(small: Small) -> None:
    strict = pytest.importorskip("array_api_strict")
    batch = small.data.batch(np.array([2, 3]))
    expected, ctx = small.model.forward(small.params, *batch)
    grads = small.model.backward(np.ones_like(expected), ctx, small.params)
    params = tree.map(strict.asarray, small.params)
    logits, ctx = small.model.forward(params, *(strict.asarray(array) for array in batch))
    found = small.model.backward(strict.ones_like(logits), ctx, params)
    close = lambda x, y: np.testing.assert_allclose(aa.to_numpy(x), y, atol=1e-4, rtol=1e-4)  # noqa: E731
    close(logits, expected)
    tree.map(close, found, grads)  # float32 sums in another order, over a hundred numbers of size 1


@pytest.mark.parametrize("name", ["location", "recurrent"])
def test_the_command_trains_a_mechanism(name: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "alignments.png"
    arguments = ["--attention", name, "--dates", "150", "--epochs", "2", "--picture", str(picture)]
    assert cli.main(["demo", *arguments]) == 0
    said = capsys.readouterr().out
    assert "150 dates in 28 languages to learn from" in said
    assert "epoch 2 of 2: " in said
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_recurrent_translator_reaches_what_is_promised(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--attention", "luong-general", "--picture", str(tmp_path / "x.png")]) == 0
    said = capsys.readouterr().out
    assert float(said.split("epoch 3 of 3: ")[1].split("%")[0]) >= 95.0


def test_all_mechanisms_make_a_table_and_a_picture(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "TEST_DATES", 60)
    assert cli.main(["demo", "--all", "--dates", "64", "--epochs", "1"]) == 0
    said = capsys.readouterr().out
    for name in ATTENTIONS:
        assert re.search(rf"^{name}: \d+\.\d% of 60 unseen dates exactly right after \d+\.\d s$", said, re.MULTILINE)
        row = re.search(rf"^\s*{name}\s+[\d,]+\s+64\s+\d+\.\d%\s+\d+\.\d\s+\d+\.\d MB", said, re.MULTILINE)
        assert row is not None, (name, said)
    assert "peak memory" in said
    assert [path.name for path in tmp_path.iterdir()] == [run.PICTURE_OF_ALL]
    assert (tmp_path / run.PICTURE_OF_ALL).read_bytes()[:4] == b"\x89PNG"


def test_the_peak_of_a_step_is_more_than_what_its_context_keeps() -> None:
    train, _ = dates.make_pairs(70, 0, seed=3)
    prepared = lesson.prepare(train, train[:5])
    model = MECHANISMS["additive"].model
    params = prepared.fresh(model, 0)
    batch = prepared.learned.batch(np.argsort(prepared.learned.lengths)[-training.BATCH :])
    kept = tree.nbytes(model.forward(params, *batch)[1])
    assert kept < comparison.step_peak_bytes(model, params, prepared.learned) < 20 * kept


WRONG = {
    "unknown": (["--attention", "nope"], "invalid choice: 'nope' (choose from"),
    "what": (["--attention"], "argument --attention: expected one argument"),
    "both": (["--attention", "additive", "--all"], "argument --all: not allowed with argument --attention"),
    "default and all": (["--all", "--attention", ATTENTIONS[0]], "argument --attention: not allowed with argument"),
    "all dates": (["--all", "--dates", "80000"], "one per date"),
    "no folder": (["--all", "--picture", "/nowhere/at/all.png"], "cannot be written: its folder does not exist"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=list(WRONG))
def test_bad_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    if "nope" in arguments:
        assert all(name in err for name in ATTENTIONS)


def test_the_help_names_every_mechanism(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    words = re.sub(r"-\s+", "-", capsys.readouterr().out)  # names broken at their hyphens
    assert all(re.search(rf"\b{name}\b", words) for name in ATTENTIONS)

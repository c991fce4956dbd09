"""The demo with multi-head attention: its model's gradients as a whole, its training, its command."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.cli import main
from attnarray.demo import dates, training, translator
from attnarray.ops.loss import cross_entropy_bwd, cross_entropy_fwd


@pytest.fixture(scope="module")
def small() -> tuple[training.Data, dict[str, Any]]:
    train, _ = dates.make_pairs(300, 0, seed=3)
    vocabulary = dates.Vocabulary(pair.source for pair in train)
    data = training.encode(train, vocabulary)
    return data, training.fresh(translator, vocabulary, data.tokens.shape[1], seed=1)


class WholeModel:
    """The loss as a function of all parameters, as a layer for gradcheck."""

    def __init__(self, tokens: Any, lengths: Any, targets: Any) -> None:
        self.batch, self.targets = (tokens, lengths), targets

    def __call__(self, params: Any) -> Any:
        return self.fwd(params)[0]

    def fwd(self, params: Any) -> Any:
        logits, ctx = translator.forward(params, *self.batch)
        loss, loss_ctx = cross_entropy_fwd(logits, self.targets)
        return loss, (params, ctx, loss_ctx)

    def bwd(self, dout: Any, ctx: Any) -> Any:
        params, model_ctx, loss_ctx = ctx
        grads = translator.backward(cross_entropy_bwd(dout, loss_ctx).logits, model_ctx, params)
        return type("Grads", (tuple,), {"_fields": ("params",)})((grads,))


def test_the_gradient_of_the_whole_model(small: Any) -> None:
    data, params = small
    model = WholeModel(*data.batch(np.array([0, 5, 7])))
    # A smaller step than usual: no hidden unit of the ReLU may cross its kink within it.
    report = aa.gradcheck(model, params, max_elements=8, step=1e-5, tolerance=1e-6)
    assert report.ok, str(report)
    assert {check.name.split(".")[1] for check in report.inputs} == set(params)


def test_gradients_have_the_tree_of_the_parameters(small: Any) -> None:
    data, params = small
    model = WholeModel(*data.batch(np.arange(4)))
    loss, ctx = model.fwd(params)
    grads = model.bwd(np.ones_like(loss), ctx)[0]
    aa.tree.map(lambda p, g: np.testing.assert_equal((p.shape, p.dtype), (g.shape, g.dtype)), params, grads)


def test_padding_does_not_change_the_translation(small: Any) -> None:
    data, params = small
    rows = np.argsort(data.lengths)[[0, -1]]
    short = translator.forward(params, *data.batch(rows[:1])[:2])[0]
    padded = translator.forward(params, *data.batch(rows)[:2])[0]
    np.testing.assert_allclose(short[0], padded[0], atol=2e-5)  # float32 sums in another order


def test_training_lowers_the_loss(small: Any) -> None:
    data, params = small
    losses: list[float] = []
    list(training.train(translator, data, params, 6, 0, lambda loss, _: losses.append(loss)))
    assert len(losses) == training.step_count(300, 6)
    assert np.mean(losses[-5:]) < 0.75 * losses[0]


@pytest.mark.slow
def test_the_command_translates_dates_never_seen(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "alignments.png"
    assert main(["demo", "--picture", str(picture)]) == 0
    said = capsys.readouterr().out
    accuracy = float(said.split("epoch 3 of 3: ")[1].split("%")[0])
    assert accuracy >= 95.0  # what the README promises
    assert "Computing on numpy; kernels: " in said
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--picture", "/nowhere/at/all.png"],
            "--picture /nowhere/at/all.png cannot be written: its folder does not exist",
        ),
        (["--picture", ""], "--picture '' cannot be written: it is a folder"),
        (["--picture", "all.pdf"], "--picture all.pdf cannot be written: expected a name that ends with .png"),
        (["--all", "--picture", os.devnull], "cannot be written: it is a device or a pipe"),
        (["--kernels", "cuda"], "cuda kernels do not run on these arrays"),
        (["--dates", "80000"], "one per date"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--picture", "unwritten.png", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_array_code_and_kernels_train_alike(small: Any) -> None:
    data, params = small
    found = {}
    for kernels in ("reference", "auto"):
        with aa.use_kernels(kernels):
            losses: list[float] = []
            list(training.train(translator, data, params, 1, 0, lambda loss, _, losses=losses: losses.append(loss)))
            found[kernels] = losses
    np.testing.assert_allclose(found["reference"], found["auto"], rtol=1e-3)  # float32, five steps of AdamW

"""The programs in docs/examples run, and reach the results that they state."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnarray import gradcheck
from attnarray.distributed import ThreadComm
from tests.support.example_programs import EXAMPLES, example
from tests.support.paths import ROOT


@pytest.fixture
def karate() -> Any:
    pytest.importorskip("networkx")
    return example("karate")


def test_karate(karate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    accuracy = karate.main(["--quick", "--output", str(tmp_path / "new")])
    assert accuracy > 0.85  # the side of most members: 0.5
    assert (tmp_path / "new" / "karate.png").stat().st_size > 50_000
    printed = capsys.readouterr().out
    for row in ("the side of most members", "the nearest leader", "label propagation", "graph attention"):
        assert re.search(rf"{row}.* \d+\.\d%", printed), printed


def test_the_baselines_of_karate(karate: Any) -> None:
    data = karate.club()
    found = karate.baselines(data)
    assert found["the side of most members"] == 0.5  # 16 and 16 of those who do not lead
    assert 0.85 < found["the nearest leader"] < found["label propagation"] < 1.0
    assert data.edges.shape == (2, 2 * 78 + 34)


def test_the_gradient_of_the_network_of_karate(karate: Any) -> None:
    data = karate.club()

    class Network:
        """As a layer for gradcheck."""

        def __call__(self, params: Any) -> Any:
            return self.fwd(params)[0]

        def fwd(self, params: Any) -> Any:
            return karate.forward(params, data._replace(x=data.x.astype("float64")), seed=3)

        def bwd(self, dout: Any, ctx: Any) -> Any:
            return type("Grads", (tuple,), {"_fields": ("params",)})((karate.backward(dout, ctx),))

    first, last = karate.aa.Philox(0).split(2)
    params = {"first": karate.FIRST.init(first, "float64"), "last": karate.LAST.init(last, "float64")}
    params["first"]["bias"] += 0.1  # where everything is dropped, the argument of ReLU is the bias: not its kink at 0
    # A small step: no argument of a ReLU may cross its kink within it.
    report = gradcheck(Network(), params, step=1e-6, tolerance=1e-5, max_elements=20)
    assert report, str(report)


def test_karate_stops_where_the_loss_is_no_number(
    karate: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def forward(params: Any, data: Any, seed: int | None = None) -> Any:
        asked.append(1)
        scores, ctx = real(params, data, seed)
        return scores * (float("nan") if len(asked) > 2 else 1.0), ctx

    real = karate.forward
    monkeypatch.setattr(karate, "forward", forward)
    params = karate.train(karate.club(), 0, 5, lambda words: None)
    assert "Step 3: the loss is nan" in capsys.readouterr().out
    assert all(karate.np.all(karate.np.isfinite(leaf)) for _, leaf in karate.tree.flatten(params))


@pytest.fixture
def language_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("safetensors")
    monkeypatch.syspath_prepend(EXAMPLES)
    return example("language_model")


def test_language_model(language_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    bits = language_model.main(["--quick", "--output", str(tmp_path)])
    assert bits < 5.5  # 8 without any learning
    for picture in ("language-model.png", "language-model-heads.png"):
        assert (tmp_path / picture).stat().st_size > 20_000
    printed = capsys.readouterr().out
    for row in ("gzip", "lzma", "5-grams, Kneser-Ney", "8-grams, Kneser-Ney", "GPT, 0.04 million parameters"):
        assert re.search(rf"{row}.* \d\.\d\d\d", printed), printed


def test_the_texts_of_the_language_model_are_apart(language_model: Any) -> None:
    data = language_model.texts()
    parts = [{" ".join(p.split()) for p in part.decode().split("\n\n")} for part in data]
    assert not parts[0] & parts[1]
    assert 0.05 < len(data.held_out) / len(data.train) < 0.3


def test_bits_are_those_of_whole_contexts(language_model: Any) -> None:
    model = language_model.SMALL
    params = model.init(language_model.aa.Philox(0), "float64")
    text = bytes(language_model.np.random.default_rng(0).integers(256, size=150, dtype="uint8"))
    before, after, half = text[:40], text[40:], model.max_seq_len // 2
    bits = 0.0
    for place in range(40, 150):  # byte `place` of the window that it is counted in
        start = 40 - half + (place - 40) // half * half
        tokens = language_model.np.frombuffer(text[start : place + 1], "uint8").astype("int64")
        logits = model(params, tokens[None, :-1])[0, -1]
        bits -= float(language_model.aa.log_softmax(logits)[tokens[-1]]) / language_model.math.log(2)
    assert language_model.bits_per_byte(model, params, before, after) == pytest.approx(bits / 110, rel=1e-12)


def test_n_grams_are_probabilities(language_model: Any) -> None:
    text = language_model.texts().held_out[:3000]
    orders = language_model.ngram.kneser_ney(text, 4)
    for before in (b"", b"e", b"the", b"xqz", text[100:110]):
        every = [language_model.ngram.probability(orders, before, bytes([byte])) for byte in range(256)]
        assert sum(every) == pytest.approx(1.0, abs=1e-12)
        assert min(every) > 0
    assert language_model.ngram.bits_per_byte(orders, text, text) < language_model.ngram.bits_per_byte(
        orders, text, text[::-1]
    )


def test_a_stopped_training_goes_on(language_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "SAVED_EVERY", 2)
    model = language_model.GPT(256, 16, 8, 1, 2, dropout=0.1)
    given = (model, bytes(range(200)), 5)
    whole = language_model.train(*given, lambda words: None)
    told: list[str] = []

    def stop(words: str) -> None:
        told.append(words)
        if len(told) == 3:
            raise KeyboardInterrupt

    saved = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        language_model.train(*given, stop, saved)
    again = language_model.train(*given, lambda words: None, saved)
    assert again.losses == whole.losses
    for (_, leaf), (_, other) in zip(*(language_model.tree.flatten(t.params) for t in (again, whole)), strict=True):
        language_model.np.testing.assert_array_equal(leaf, other)


def test_training_stops_where_the_loss_is_no_number(
    language_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aa, np = language_model.aa, language_model.np

    class Broken(type(language_model.SMALL)):
        """From its third batch on, the gradients are NaN."""

        def bwd(self, dlogits: Any, ctx: Any) -> Any:
            steps.append(1)
            return super().bwd(dlogits * (np.nan if len(steps) > 2 else 1.0), ctx)

    steps: list[int] = []
    saved = tmp_path / "run.safetensors"
    trained = language_model.train(Broken(256, 16, 8, 1, 2), bytes(range(200)), 5, lambda words: None, saved)
    assert "Step 3: the loss is" in capsys.readouterr().out
    assert len(trained.losses) == 2
    assert all(np.all(np.isfinite(leaf)) for _, leaf in aa.tree.flatten(trained.params))
    kept = language_model.load_state(saved)
    assert kept["losses"] == trained.losses
    for (_, leaf), (_, other) in zip(*map(aa.tree.flatten, (kept["params"], trained.params)), strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.fixture
def translation(monkeypatch: pytest.MonkeyPatch) -> Any:
    for needed in ("babel", "matplotlib"):
        pytest.importorskip(needed)
    monkeypatch.syspath_prepend(EXAMPLES)
    return example("translation")


def test_translation(translation: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = translation.main(["--quick", "--output", str(tmp_path)])
    assert 0.6 < shares.pop("the rule of the most similar pattern") < 0.9
    assert set(shares) == set(translation.COLORS)
    for picture in ("translation.png", "translation-heads.png"):
        assert (tmp_path / picture).stat().st_size > 20_000
    printed = capsys.readouterr().out
    for row in ("the rule of the most similar pattern", *translation.COLORS):
        assert re.search(rf"{row}.* \d+\.\d%", printed), printed


def test_translation_stops_where_the_loss_is_no_number(translation: Any, capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[int] = []

    class Broken(translation.Transformer):
        """From its third batch on, the gradients are NaN."""

        def bwd(self, dlogits: Any, ctx: Any) -> Any:
            steps.append(1)
            return super().bwd(dlogits * (float("nan") if len(steps) > 2 else 1.0), ctx)

    pairs, _ = translation.dates.make_pairs(320, 28)
    vocabulary = translation.dates.Vocabulary(pair.source for pair in pairs)
    model = Broken(
        len(vocabulary), translation.START + 1, max_seq_len=64, dim=8, num_layers=1, num_heads=2, dropout=0.0
    )
    trained = translation.train(model, translation.texts(pairs, vocabulary), 1, lambda words: None)
    assert "Step 3: the loss is" in capsys.readouterr().out
    assert len(trained.losses) == 2
    leaves = translation.tree.flatten(trained.params)
    assert all(translation.np.all(translation.np.isfinite(leaf)) for _, leaf in leaves)


def test_the_rules_of_dates(translation: Any) -> None:
    Pair, by_pattern = translation.dates.Pair, translation.by_pattern
    known = [Pair("7 May 2003", "2003-05-07", "en"), Pair("2011年5月7日", "2011-05-07", "ja")]
    asked = [Pair("30 May 1950", "", "en"), Pair("1999年12月31日", "", "ja"), Pair("1 Mai 1999", "", "de")]
    assert by_pattern(known, asked) == ["1950-05-30", "1999-12-31", "1999-05-01"]


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Any:
    for needed in ("sklearn", "matplotlib"):
        pytest.importorskip(needed)
    monkeypatch.syspath_prepend(EXAMPLES)
    return example("digits")


def test_digits(digits: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert digits.main(["--quick", "--output", str(tmp_path)]) > 0.2  # a guess: 0.1
    assert "--quick: 4 epochs of 40, too few" in (printed := capsys.readouterr().out)
    for picture in ("digits.png", "digits-loss.png"):
        assert (tmp_path / picture).stat().st_size > 20_000
    for row in ("the most frequent digit", "logistic regression", "3 nearest neighbors", "patches, 69,194 parameters"):
        assert re.search(rf"{row}.* \d+\.\d%", printed), printed


def test_fine_tuned_digits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(EXAMPLES)
    shares = example("fine_tune_digits").main(["--quick"])
    assert shares["LoRA"] > shares["as it is"]
    assert re.search(r"LoRA +7,736 +\d+\.\d%", capsys.readouterr().out)


def test_digits_stop_where_the_loss_is_no_number(digits: Any, capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[int] = []

    class Broken(type(digits.MODEL)):
        """From its third batch on, the gradients are NaN."""

        def bwd(self, dlogits: Any, ctx: Any) -> Any:
            steps.append(1)
            return super().bwd(dlogits * (float("nan") if len(steps) > 2 else 1.0), ctx)

    trained = digits.train(
        digits.digits(), 0, 1, lambda words: None, Broken(8, 4, 10, dim=8, num_layers=1, num_heads=2)
    )
    assert "Step 3: the loss is" in capsys.readouterr().out
    assert len(trained.losses) == 2
    assert all(digits.np.all(digits.np.isfinite(leaf)) for _, leaf in digits.tree.flatten(trained.params))


@pytest.fixture
def classification(monkeypatch: pytest.MonkeyPatch) -> Any:
    for needed in ("matplotlib", "safetensors", "sklearn"):
        pytest.importorskip(needed)
    monkeypatch.syspath_prepend(EXAMPLES)
    return example("text_classification")


@pytest.mark.slow
def test_text_classification(classification: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    share = classification.main(["--quick", "--output", str(tmp_path)])
    assert share > 0.5  # the most frequent field: about a quarter
    assert (tmp_path / "text_classification.png").stat().st_size > 50_000
    assert (tmp_path / "text_classification-loss.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    for row in ("always", "naive Bayes over words", r"logistic regression over words and pairs", "BERT"):
        assert re.search(rf"{row}.* \d+\.\d%", printed), printed


def test_training_of_the_text_classification_goes_on_with_the_same_bits(classification: Any, tmp_path: Path) -> None:
    np, rng = classification.np, classification.np.random.default_rng(0)
    rows = classification.Rows(rng.integers(1, 20, (70, 64)), rng.integers(4, 9, 70), rng.integers(0, 6, 70))
    network = classification.make_network(17, 8)
    path, calm = tmp_path / "run", lambda words: None
    begun = classification.train(network, rows, classification.beginning(network, 1), 1, path, calm)
    assert begun["epoch"] == 1
    ended = classification.train(network, rows, classification.checkpoints.load_state(path), 2, path, calm)
    again = classification.train(network, rows, begun, 2, tmp_path / "other", calm)
    for one, other in zip(*(classification.tree.flatten(state) for state in (ended, again)), strict=True):
        assert one[0] == other[0]
        assert np.array_equal(one[1], other[1]) or one[1] == other[1]
    begun["params"]["scores"]["bias"] += np.nan
    with pytest.raises(SystemExit, match=r"The loss is nan at step 3. The state of the last good epoch is in"):
        classification.train(network, rows, begun, 2, path, calm)
    assert classification.checkpoints.load_state(path)["epoch"] == 2


def test_the_gradient_of_the_text_classification(classification: Any) -> None:
    network = classification.make_network(17, 8).without_dropout()

    class Network:
        """As a layer for gradcheck."""

        def __call__(self, params: Any) -> Any:
            return self.fwd(params)[0]

        def fwd(self, params: Any) -> Any:
            tokens = classification.np.arange(12).reshape(3, 4)
            return network.forward(params, tokens, classification.np.array([4, 2, 3]))

        def bwd(self, dout: Any, ctx: Any) -> Any:
            return type("Grads", (tuple,), {"_fields": ("params",)})((network.backward(dout, ctx),))

    report = gradcheck(Network(), network.init(classification.aa.Philox(0)), max_elements=6)
    assert report, str(report)


def test_training_on_several_ranks_has_the_losses_of_one(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    program = example("data_parallel")
    alone = ThreadComm(1).run(program.train, 13)[0]
    assert alone[-1] < alone[0] - 0.5
    first = ThreadComm(3).run(program.train, 10, tmp_path)
    rest = ThreadComm(4).run(program.train, 13, tmp_path, 2)
    for found, expected in (*((own, alone[:10]) for own in first), *((own, alone[10:]) for own in rest)):
        np.testing.assert_allclose(found, expected, rtol=1e-4)  # float32: sums over the batch in another order
    with pytest.raises(ValueError, match="12 x 32 tokens cannot be divided among 5 x 1 ranks"):
        ThreadComm(5).run(program.train, 1)
    with pytest.raises(ValueError, match="12 x 32 tokens cannot be divided among 1 x 3 ranks"):
        ThreadComm(3).run(program.train, 1, None, 3)


def test_induction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few steps run and print; a period is what makes a token known."""
    induction = example("induction")
    found = induction.main(["--quick", "--plot", "", "--page", str(tmp_path / "page.html")])
    assert [each.step for each in found] == [0, 10]
    assert found[0].previous.shape == found[0].induction.shape == (2, 4)
    assert "without layer 1, head 3" in capsys.readouterr().out
    assert "Repeated tokens" in (tmp_path / "page.html").read_text(encoding="utf-8")
    tokens, known = induction.batch(np.random.default_rng(0), 8)
    for row, mask in zip(tokens, known, strict=True):
        first = int(np.argmax(mask))
        np.testing.assert_array_equal(row[first:], row[: len(row) - first])
        assert len(set(row[:first])) == first
    induction.plot(found, induction.ablations(*induction.train(0, 1)[:2]), str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_recall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    recall = example("recall")
    shares = recall.main(["--quick"])
    recall.main(["--steps", "5", "--pairs", "6", "--plot", str(tmp_path / "recall.png")])
    assert (tmp_path / "recall.png").stat().st_size > 5_000
    assert "24 pairs of 12 keys, chance 12.5%" in capsys.readouterr().out
    assert shares["delta"][0] > 0.9 > 0.7 > shares["linear"][0]  # the linear rule adds up all values of a key


def test_the_gradient_of_recall() -> None:
    recall = example("recall")
    given = recall.batch(np.random.default_rng(0), 2, 6)
    given = given._replace(keys=given.keys.astype(np.float64), values=given.values.astype(np.float64))
    params = {name: array.astype(np.float64) for name, array in recall.init(recall.aa.Philox(0)).items()}
    for rule in recall.RULES:
        _, _, grads = recall.loss(params, given, rule)
        for name, array in params.items():
            for at in ((0, 0), (3, 2)):
                changed = [array.copy(), array.copy()]
                changed[0][at] += 1e-5
                changed[1][at] -= 1e-5
                above, below = (recall.loss({**params, name: x}, given, rule)[0] for x in changed)
                assert abs((above - below) / 2e-5 - grads[name][at]) < 1e-8, (rule, name)  # h^2, and rounding / h


PROGRAMS = ("digits", "induction", "karate", "language_model", "recall", "text_classification", "translation")
FULL_RUNS = json.loads((ROOT / "benchmarks" / "results" / "2026-12-01-examples.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_say_how_long_they_take_and_what_quick_is_not(name: str) -> None:
    """At the top, and at the end of a quick run, which must not look like a failure; figures are those measured."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    top = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    takes = re.search(r"It takes (a minute|less than a minute|two minutes|five minutes) on one core", top)
    assert takes, top
    assert "--quick" in top.partition("It takes")[2]
    most = {"a minute": 1.1, "less than a minute": 1.0, "two minutes": 2.1, "five minutes": 5.1}[takes[1]]
    assert most / 2.5 < FULL_RUNS[name]["processor_minutes"] <= most or takes[1] == "less than a minute"
    if name == "recall":  # its quick run tells the rules apart: test_recall
        return
    stated = re.search(r'^FULL_RUN = "(.*)"$', source, re.MULTILINE)
    assert stated
    assert "The full run takes {FULL_RUN}." in source
    printed = "\n".join(FULL_RUNS[name]["printed"])
    figures = re.findall(r"\d+\.\d+", stated[1])
    assert figures
    assert all(figure in printed for figure in figures)

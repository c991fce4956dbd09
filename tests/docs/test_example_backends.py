"""The programs in docs/examples give the same training on every library, and clear errors for missing ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import backend, tree
from tests.support.example_programs import EXAMPLES, example
from tests.support.libraries import JAX, LIBRARIES, NUMPY, Library

PROGRAMS = {
    "digits": ("matplotlib", "sklearn"),
    "karate": ("matplotlib", "networkx"),
    "language_model": ("matplotlib", "safetensors"),
    "text_classification": ("matplotlib", "safetensors", "sklearn"),
    "translation": ("babel", "matplotlib"),
}


@pytest.fixture
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    for needed in PROGRAMS[request.param]:
        pytest.importorskip(needed)
    monkeypatch.syspath_prepend(EXAMPLES)
    return example(request.param)


def calm(words: str) -> None:
    """Ignores what would go into a progress bar."""


def digits(program: Any, folder: Path) -> Any:
    data = program.digits()
    data = data._replace(train=data.train[:192], train_classes=data.train_classes[:192])
    trained = program.train(data, 0, 1, calm)
    program.draw(folder / "picture.png", data, trained)
    return trained.params, trained.losses, program.classified(trained.params, data.test[:50])


def karate(program: Any, folder: Path) -> Any:
    data = program.club()
    params = program.train(data, 0, 5, calm)
    program.draw(folder / "picture.png", data, params, 1.0)
    return params, program.predict_sides(params, data)


def language_model(program: Any, folder: Path) -> Any:
    text = bytes(program.np.random.default_rng(0).integers(97, 105, 400, dtype="uint8"))
    program.train(program.SMALL, text, 2, calm, folder / "run")  # ends before its first save
    trained = program.train(program.SMALL, text, 3, calm)
    program.draw_heads(folder / "picture.png", program.SMALL, trained.params, text[:20])
    written = program.sample(program.SMALL, trained.params, 12)
    return (
        trained.params,
        trained.losses,
        program.bits_per_byte(program.SMALL, trained.params, text, text[:100]),
        written,
    )


def text_classification(program: Any, folder: Path) -> Any:
    rng = np.random.default_rng(0)
    rows = program.Rows(rng.integers(1, 20, (140, 64)), rng.integers(4, 9, 140), rng.integers(0, 6, 140))
    network = program.make_network(17, 8)
    state = program.train(network, rows, program.beginning(network, 1), 1, folder / "run", calm)
    state = program.train(network, rows, program.checkpoints.load_state(folder / "run"), 2, folder / "run", calm)
    one = program.Rows(*(array[:1] for array in rows))
    weights, predicted = network.attention(state["params"], one), network.predict(state["params"], rows)
    return state["params"], state["losses"], weights, predicted


def translation(program: Any, folder: Path) -> Any:
    pairs, asked = program.dates.make_pairs(130, 28)
    vocabulary = program.dates.Vocabulary(pair.source for pair in pairs)
    data, test = program.texts(pairs, vocabulary), program.texts(asked, vocabulary)
    found = []
    for model in program.models(len(vocabulary)).values():
        trained = program.train(model, data, 1, calm)
        looks = program.looks(model, trained.params, test, 3)
        found.append((trained.params, trained.losses, looks, program.translate(model, trained.params, test)))
    return found


RUNS: dict[str, Callable[[Any, Path], Any]] = {
    run.__name__: run for run in (digits, karate, language_model, text_classification, translation)
}
OTHERS = [library for library in LIBRARIES if library not in (NUMPY, JAX)]  # JAX compiles for each shape: minutes


@pytest.mark.parametrize("other", OTHERS, ids=[library.name for library in OTHERS])
@pytest.mark.parametrize("program", PROGRAMS, indirect=True)
def test_every_library_trains_alike(program: Any, other: Library, tmp_path: Path) -> None:
    run = RUNS[program.__name__]
    ours = run(program, tmp_path)
    with aa.use_backend(other.name):
        theirs = run(program, tmp_path)
    assert other.name in {backend.library_name(leaf) for _, leaf in tree.flatten(theirs)}  # and not by NumPy after all
    for (path, one), (_, two) in zip(tree.flatten(ours), tree.flatten(theirs), strict=True):
        where = tree.format_path(path)
        if isinstance(one, str):
            assert one == two, where
            continue
        one, two = (np.asarray(aa.to_numpy(x) if backend.library_name(x) == other.name else x) for x in (one, two))
        # float32 with sums in another order, over a few steps of Adam, which takes the sign of gradients near 0: a few
        # entries differ by a whole step, so all are compared together.
        assert two.shape == one.shape, where
        assert np.linalg.norm(two - one) <= 2e-3 * (np.linalg.norm(one) + np.sqrt(one.size)), where


@pytest.mark.parametrize("program", PROGRAMS, indirect=True)
def test_a_backend_that_cannot_be_used(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"Unknown backend 'abacus'. Known backends: numpy, cupy, "):
        program.main(["--quick", "--output", str(tmp_path / "new"), "--backend", "abacus"])
    missing = backend.BackendStatus("cupy", False, "", "", "no CUDA device was found")
    monkeypatch.setattr(backend, "_status", lambda name: missing)
    with pytest.raises(RuntimeError, match=r"Backend 'cupy' cannot be used here: no CUDA device was found."):
        program.main(["--quick", "--output", str(tmp_path / "new"), "--backend", "cupy"])
    assert not (tmp_path / "new").exists()

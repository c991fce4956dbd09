"""benchmarks/linear_attention.py: the chunked form in PyTorch, and the parts without it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def benchmarks_beside_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / "benchmarks").exists():
        pytest.skip("this copy of the sources has no benchmarks")
    monkeypatch.syspath_prepend(ROOT)


def test_the_parts_give_every_predicted_figure() -> None:
    from benchmarks import linear_attention as bench

    found = {
        "share": bench.share(64, 1), "softmax": bench.against_softmax(64, 1, 1),
        "long": bench.against_softmax(64, 2, 1),
        "step": bench.one_step(2, 1), "memory": bench.memory(64), "accuracy": bench.accuracy(70),
        "speed": dict.fromkeys((
            "forward: loop of transformers", "forward: ours", "both, short: loop of transformers", "both, short: ours",
            "forward: our chunked PyTorch", "both: our chunked PyTorch", "both: ours",
        ), 1.0),
    }  # fmt: skip
    assert len(bench.by_dim(64, 1)) == 6
    figures = bench.came(found)
    assert list(figures) == list(bench.PREDICTED)
    assert found["memory"]["inputs"] > 0


@pytest.mark.peers
def test_the_chunked_form_in_pytorch_is_right() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks import linear_attention as bench

    given = bench.arrays(128, 2)
    order = ("query", "key", "value", "decay", "beta")
    found = bench.chunked_torch(*(torch.from_numpy(given[name]) for name in order))
    expected = bench.ours(given, False).out
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)  # float32, differences of sums of decays

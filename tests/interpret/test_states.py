"""States between blocks: read by the output layer, replaced by a hook."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import interpret

MODEL = aa.models.GPT(vocab_size=20, max_seq_len=16, dim=8, num_layers=3, num_heads=2, init_std=0.5)
PARAMS = MODEL.init(aa.Philox(0), "float64")
CLEAN, CORRUPTED = np.array([[3, 1, 4, 1]]), np.array([[3, 7, 4, 1]])


def logit(logits: Any) -> float:
    return float(logits[0, -1, 5])


def run(tokens: Any) -> Any:
    return MODEL(PARAMS, tokens)


def test_the_lens_of_a_shorter_model_is_its_output() -> None:
    found = interpret.logit_lens(MODEL, PARAMS, CLEAN)
    assert len(found) == 4
    shorter = aa.models.GPT(vocab_size=20, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    np.testing.assert_allclose(found[2], shorter({**PARAMS, "blocks": PARAMS["blocks"][:2]}, CLEAN), atol=1e-12)
    np.testing.assert_allclose(found[3], run(CLEAN), atol=1e-12)


def test_a_trace_restores_what_depends_on_the_state() -> None:
    trace = np.array(interpret.causal_trace(run, CLEAN, CORRUPTED, logit))
    assert trace.shape == (3, 4)
    clean, corrupted = logit(run(CLEAN)), logit(run(CORRUPTED))
    assert trace[2, 3] == pytest.approx(clean, abs=1e-12)  # the state that the answer is read from
    assert trace[:, 0] == pytest.approx(corrupted, abs=1e-12)  # position 0 is equal in both
    assert trace[2, 1] == pytest.approx(corrupted, abs=1e-12)  # nothing reads it any more
    assert abs(trace[0, 1] - corrupted) > 1e-6


def test_a_forward_hook_sees_both_passes_and_ends_with_its_block() -> None:
    seen: list[tuple[int, Any]] = []

    def keep(stack: Any, n: int, x: Any) -> Any:
        seen.append((n, stack))
        return x

    with interpret.forward_hook(keep):
        run(CLEAN)
        MODEL.fwd(PARAMS, CLEAN)
    run(CLEAN)
    assert [n for n, _ in seen] == [0, 1, 2, 0, 1, 2]
    assert all(stack is MODEL.body for _, stack in seen)


def test_a_backward_hook_sees_every_layer_and_changes_nothing() -> None:
    logits, ctx = MODEL.fwd(PARAMS, CLEAN)
    expected = MODEL.bwd(logits, ctx)
    seen: list[Any] = []
    with interpret.backward_hook(lambda ctx, dout: seen.append(dout)):
        found = MODEL.bwd(logits, ctx)
    assert len(seen) == 3
    for (path, value), (_, other) in zip(aa.tree.flatten(expected), aa.tree.flatten(found), strict=True):
        np.testing.assert_array_equal(value, other, err_msg=str(path))


def test_errors_name_what_does_not_fit() -> None:
    with pytest.raises(TypeError, match="expected a GPT"):
        interpret.logit_lens(MODEL.body, PARAMS, CLEAN)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="equally many positions"):
        interpret.causal_trace(run, CLEAN, CORRUPTED[:, :2], logit)
    with pytest.raises(ValueError, match="computed no block"):
        interpret.causal_trace(lambda x: x, CLEAN, CORRUPTED, logit)

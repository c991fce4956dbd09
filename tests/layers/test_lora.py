"""LoRA: what it changes and what it shares, its gradients through a model, its messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from tests.support.messages import says

MODEL = aa.models.GPT(11, 6, 8, 2, 2)
BASE = MODEL.init(aa.Philox(0), "float64")
TOKENS = np.random.default_rng(0).integers(11, size=(3, 6))
LORA = aa.layers.LoRA(MODEL, ("*.attention.query", "blocks.1.feed_forward.out"), rank=3, alpha=6.0)


def drawn() -> Any:
    rng = np.random.default_rng(1)
    return tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape), LORA.init(aa.Philox(2), "float64"))


def test_it_begins_as_the_model_and_shares_what_it_leaves() -> None:
    merged = LORA.merge(LORA.init(aa.Philox(1), "float64"), BASE)
    np.testing.assert_array_equal(MODEL(merged, TOKENS), MODEL(BASE, TOKENS))
    shared = {path for (path, one), (_, other) in zip(tree.flatten(merged), tree.flatten(BASE), strict=True)
              if one is not other}  # fmt: skip
    assert {".".join(map(str, path)) for path in shared} == {f"{path}.weight" for path in LORA.shapes()}


def test_the_adapted_weights() -> None:
    params = drawn()
    own = params["blocks.1.feed_forward.out"]
    expected = BASE["blocks"][1]["feed_forward"]["out"]["weight"] + 2.0 * own["b"] @ own["a"]
    found = LORA.merge(params, BASE)["blocks"][1]["feed_forward"]["out"]["weight"]
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_gradients_through_a_model_are_the_differences_of_its_loss() -> None:
    params, targets = drawn(), np.roll(TOKENS, 1, axis=1)

    def loss(adapters: Any) -> float:
        return float(aa.cross_entropy(MODEL(LORA.merge(adapters, BASE), TOKENS), targets))

    logits, ctx = MODEL.fwd(LORA.merge(params, BASE), TOKENS)
    out, loss_ctx = aa.cross_entropy_fwd(logits, targets)
    dlogits = aa.cross_entropy_bwd(np.ones_like(out), loss_ctx).logits
    grads = LORA.gradients(params, MODEL.bwd(dlogits, ctx).params)
    direction = tree.map(lambda leaf: np.cos(np.arange(leaf.size)).reshape(leaf.shape), params)
    step = 1e-5
    moved = [loss(tree.map(lambda p, d, s=sign: p + s * step * d, params, direction)) for sign in (1.0, -1.0)]
    along = sum(np.sum(g * d) for (_, g), (_, d) in zip(tree.flatten(grads), tree.flatten(direction), strict=True))
    np.testing.assert_allclose((moved[0] - moved[1]) / (2 * step), along, rtol=1e-7)


def test_adapters_of_another_precision_keep_that_of_the_model() -> None:
    base = tree.map(lambda leaf: leaf.astype(np.float16), BASE)
    params = LORA.init(aa.Philox(1))
    merged = LORA.merge(params, base)
    assert {leaf.dtype for _, leaf in tree.flatten(merged)} == {np.dtype("f2")}
    assert {leaf.dtype for _, leaf in tree.flatten(LORA.gradients(params, merged))} == {np.dtype("f4")}


@pytest.mark.parametrize(
    ("error", "expected", "changes"),
    [
        (ValueError, "`targets` has '*.attention.qurey', which fits no weight of two axes of GPT: expected patterns of "
         "'token'", {"targets": ("*.attention.qurey",)}),
        (ValueError, "`targets` has '', which fits no weight", {"targets": ()}),
        (TypeError, "`targets` is '*', expected a tuple of patterns", {"targets": "*"}),
        (TypeError, "`model` is None, expected a layer or model", {"model": None}),
        (ValueError, "`rank` is 0, expected an integer >= 1", {"rank": 0}),
        (ValueError, "`alpha` is 0.0, expected a finite number above 0", {"alpha": 0.0}),
    ],
)  # fmt: skip
def test_what_is_wrong(error: type[Exception], expected: str, changes: dict[str, Any]) -> None:
    says(error, expected, lambda: aa.layers.LoRA(**{"model": MODEL, "targets": ("token",), **changes}))


def test_parameters_of_another_model_are_refused() -> None:
    says(ValueError, "`params` lacks 'token'", lambda: LORA.merge(drawn(), {}))
    says(ValueError, "`params` lacks 'token'", lambda: LORA.gradients(drawn(), {}))
    says(ValueError, "`params` lacks 'blocks.0.attention.query'", lambda: LORA.merge({}, BASE))

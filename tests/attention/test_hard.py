"""Hard attention: equal to PyTorch where supported, and properties of noise, masks and bad input.

tests/attention/test_hard_estimators.py compares the gradients with those of the expected cost.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import HardResult, to_numpy, tree
from attnarray.attention import blocks
from attnarray.attention.selection.estimators import ESTIMATORS
from attnarray.attention.selection.hard import SAMPLING
from attnarray.layers import HardAttention
from attnarray.random import attention_keep_mask, attention_noise
from tests.contract.test_query_key_value import HIDING
from tests.support.frozen import frozen
from tests.support.libraries import Library, assert_close, assert_trees_close
from tests.support.messages import says

TOLERANCE = {"float64": 1e-13, "float32": 1e-5}  # PyTorch's own float32 is off by up to 2e-6 here
ROUNDING = 1e-13  # sums of a few dozen products in another order
REFERENCES = {name: case for name, case in frozen("sparse.npz").items() if name.startswith("hard")}
RNG = np.random.default_rng(6)
B, T, S, D, Dv = 3, 4, 7, 5, 6
QKV = {"query": (B, T, D), "key": (B, S, D), "value": (B, S, Dv)}
ARRAYS = {name: RNG.standard_normal(shape) for name, shape in QKV.items()}
each_kernels = pytest.mark.parametrize("kernels", ["reference", "auto"])
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def options_of(estimator: str, rng: int = 11) -> dict[str, Any]:
    special = {"gumbel": {"temperature": 0.7}, "straight_through": {"temperature": 0.7}, "top_k": {"k": 2}}
    return {"estimator": estimator, **special.get(estimator, {}), **({"rng": rng} if estimator in SAMPLING else {})}


def run(estimator: str, dout: HardResult | None = None, **given: Any) -> tuple[HardResult, Any]:
    result, pullback = aa.vjp(aa.hard_attention, **{**ARRAYS, **options_of(estimator), **given})
    return result, pullback(cotangent(result) if dout is None else dout)


def cotangent(result: HardResult) -> HardResult:
    rng = np.random.default_rng(1)
    return HardResult(*(rng.standard_normal(part.shape) for part in result))


@each_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", REFERENCES)
def test_it_equals_pytorch(name: str, dtype: str, kernels: str) -> None:
    reference = REFERENCES[name].in_dtype(dtype)
    given = reference.given("query", "key", "value", "attn_mask", "noise")
    with aa.use_kernels(kernels):
        result, pullback = aa.vjp(aa.hard_attention, **given, **reference.options)
        grads = pullback(HardResult(*(reference.arrays[f"d{part}"] for part in HardResult._fields)))
    for part, found in result._asdict().items():
        assert_close(found, reference.arrays[part], TOLERANCE[dtype], part)
    for part in ("query", "key", "value"):
        assert_close(getattr(grads, part), reference.arrays[f"grad_{part}"], TOLERANCE[dtype], part)


@each_kernels
@each_estimator
@pytest.mark.parametrize(("options", "hidden"), HIDING.values(), ids=list(HIDING))
@pytest.mark.parametrize("rubbish", [math.nan, math.inf])
def test_masked_keys_are_ignored(
    estimator: str, kernels: str, options: dict[str, Any], hidden: np.ndarray, rubbish: float
) -> None:
    options = {**options, **({"k": 1} if estimator == "top_k" else {})}  # some queries attend to one key only
    dirty = {name: np.where(hidden[:, None], rubbish, ARRAYS[name]) for name in ("key", "value")}
    with aa.use_kernels(kernels), np.errstate(invalid="ignore"):  # masked infinities give NaN in between
        clean, found = run(estimator, **options), run(estimator, **dirty, **options)
    assert_trees_close(found, clean, ROUNDING)
    assert not np.any(found[1].key[:, hidden])
    assert all(np.all(np.isfinite(leaf)) for _, leaf in tree.flatten(found))


@each_kernels
@pytest.mark.parametrize("estimator", ["reinforce", "straight_through", "argmax", "top_k"])
def test_values_that_are_not_selected_are_ignored(estimator: str, kernels: str) -> None:
    _, ctx = aa.hard_attention_fwd(**ARRAYS, **options_of(estimator))
    value = ARRAYS["value"].copy()
    for b in range(B):
        value[b, np.setdiff1d(np.arange(S), ctx.choice[b])] = math.nan
    with aa.use_kernels(kernels):
        result, grads = run(estimator, value=value)
    assert np.all(np.isfinite(result.out))
    if estimator != "straight_through":  # whose gradient depends on all values
        assert all(np.all(np.isfinite(leaf)) for _, leaf in tree.flatten(grads))


@each_kernels
@each_estimator
def test_fully_masked_queries_give_zeros(estimator: str, kernels: str) -> None:
    mask = np.ones((T, S), bool)
    mask[1] = False
    with aa.use_kernels(kernels):
        result, grads = run(estimator, attn_mask=mask)
        _, ctx = aa.hard_attention_fwd(**ARRAYS, **options_of(estimator), attn_mask=mask)
    assert not any(np.any(part[:, 1]) for part in result)
    assert not np.any(grads.query[:, 1])
    assert np.all(ctx.choice[:, :, 1] == -1)
    assert all(np.all(np.isfinite(leaf)) for _, leaf in tree.flatten([result, grads]))
    assert not np.any(aa.attention_weights(ctx)[:, 1])


@each_estimator
@pytest.mark.parametrize("changes", [{"B": 0}, {"T": 0}, {"S": 0}, {"T": 0, "S": 0}], ids=str)
def test_empty_sizes(estimator: str, changes: dict[str, int]) -> None:
    b, t, s = changes.get("B", B), changes.get("T", T), changes.get("S", S)
    given = {"query": np.ones((b, t, D)), "key": np.ones((b, s, D)), "value": np.ones((b, s, Dv))}
    result, grads = run(estimator, **given, is_causal=estimator != "top_k", kv_lengths=np.full(b, s))
    assert [part.shape for part in result] == [(b, t, Dv), (b, t), (b, t)]
    assert {name: getattr(grads, name).shape for name in given} == {name: array.shape for name, array in given.items()}
    if s == 0:
        assert not any(np.any(part) for part in result)


@each_kernels
@each_estimator
def test_nan_propagates(estimator: str, kernels: str) -> None:
    key = ARRAYS["key"].copy()
    key[1, 3] = math.nan
    value = np.where(np.isnan(key[..., :1]), math.nan, ARRAYS["value"])
    with aa.use_kernels(kernels):
        result, _ = run(estimator, key=key, value=value)
    assert all(np.all(np.isnan(part[1])) for part in result)
    assert all(np.all(np.isfinite(part[[0, 2]])) for part in result)


@each_kernels
@each_estimator
def test_blocks_of_queries_change_nothing(estimator: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"bias": RNG.standard_normal((T, S)), "q_offset": np.array([3, 4, 5]), "is_causal": True}
    results = []
    for elements in (blocks.BLOCK_ELEMENTS, B * S * 4):
        monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
        with aa.use_kernels(kernels):
            results.append(run(estimator, **options))
    assert_trees_close(results[1], results[0], ROUNDING)


def test_steps_draw_what_the_whole_run_draws() -> None:
    whole, _ = run("reinforce", is_causal=True, q_offset=3)
    for t in range(T):
        step, _ = run("reinforce", query=ARRAYS["query"][:, t : t + 1], is_causal=True, q_offset=3 + t)
        assert_close(step.out, whole.out[:, t : t + 1], ROUNDING)


def test_grouped_heads_and_layouts() -> None:
    q, k, v = (RNG.standard_normal(shape) for shape in ((2, 6, 4, 5), (2, 3, 7, 5), (2, 3, 7, 8)))
    repeated = (np.repeat(x, 2, axis=1) for x in (k, v))
    result = aa.hard_attention(q, k, v, **options_of("top_k"))
    assert_trees_close(result, aa.hard_attention(q, *repeated, **options_of("top_k")), ROUNDING)
    transposed = aa.hard_attention(*(np.swapaxes(x, 1, 2) for x in (q, k, v)), layout="BTHD", **options_of("top_k"))
    assert_trees_close(transposed._replace(out=np.swapaxes(transposed.out, 1, 2)), result, ROUNDING)


def test_noise_is_the_same_everywhere(library: Library) -> None:
    shape = (2, 3, 4, 9)
    expected = attention_noise(7, shape, np, None, 5, 0)
    given = library.array(np.zeros(1))
    xp = aa.namespace_of(given)
    found = to_numpy(attention_noise(7, shape, xp, getattr(given, "device", None), 5, 0))
    assert found.shape == shape
    np.testing.assert_allclose(found, expected, rtol=1e-14)  # the bits are the same, logarithms may round otherwise
    part = to_numpy(attention_noise(7, (2, 3, 2, 4), xp, getattr(given, "device", None), 7, 3))
    np.testing.assert_allclose(part, expected[:, :, 2:, 3:7], rtol=1e-14)


def test_noise_is_of_gumbel_and_independent_of_dropout() -> None:
    noise = attention_noise(3, (4, 2, 50, 500), np, None, 0, 0)  # 200,000 numbers
    assert np.all(np.isfinite(noise))
    error = math.pi / math.sqrt(6 * noise.size)
    assert abs(noise.mean() - np.euler_gamma) < 4 * error
    for x in (-1.0, 0.0, 1.0, 3.0):  # P(g < x) = exp(-exp(-x))
        p = math.exp(-math.exp(-x))
        assert abs((noise < x).mean() - p) < 4 * math.sqrt(p * (1 - p) / noise.size)
    keep = attention_keep_mask(3, 0.5, noise.shape, np, None, 0, 0)
    assert abs(np.corrcoef(keep.ravel(), noise.ravel())[0, 1]) < 4 / math.sqrt(noise.size)


@each_estimator
def test_the_weights_are_the_soft_probabilities(estimator: str) -> None:
    _, ctx = aa.hard_attention_fwd(**ARRAYS, **options_of(estimator), kv_lengths=[7, 3, 5])
    _, soft = aa.scaled_dot_product_attention_fwd(**ARRAYS, kv_lengths=[7, 3, 5])
    assert_close(aa.attention_weights(ctx), aa.attention_weights(soft), ROUNDING)
    assert_close(aa.attention_weights(ctx, slice(1, 3)), aa.attention_weights(soft, slice(1, 3)), ROUNDING)


@each_estimator
def test_contexts_hold_nothing_of_the_size_of_the_scores(estimator: str) -> None:
    given = {name: RNG.standard_normal((1, 256, shape[-1])) for name, shape in QKV.items()}
    _, ctx = aa.hard_attention_fwd(**given, **options_of(estimator))
    assert tree.nbytes(ctx) < 256 * 256


@each_estimator
@pytest.mark.parametrize("values", [False, True], ids=["keys", "values"])
def test_gradients_of_the_layer(estimator: str, values: bool) -> None:
    options = {name: value for name, value in options_of(estimator).items() if name != "rng"}
    layer = HardAttention(4, 6, 8, **options)
    params = layer.init(aa.Philox(2), "float64")
    given = {"query": RNG.standard_normal((2, 3, 4)), "key": RNG.standard_normal((2, 5, 6))}
    given |= {"value": RNG.standard_normal((2, 5, 7))} if values else {}
    rules = {"kv_lengths": [5, 3], "bias": RNG.standard_normal((3, 5)), **({"rng": 4} if estimator in SAMPLING else {})}
    result, ctx = layer.fwd(params, **given, **rules)
    assert result.out.shape == (2, 3, 7 if values else 6)
    assert aa.attention_weights(ctx).shape == (2, 3, 5)
    tree.add(layer.bwd(result, ctx).params, params)  # trees of the same structure
    report = aa.gradcheck(layer, params, **given, **rules)
    names = {"params.query.weight", "params.query.bias", "params.key.weight", "bias", *given}
    assert {check.name for check in report.inputs} == names
    if estimator == "straight_through":  # whose gradient of the scores is by design that of another function
        assert {check.name for check in report.inputs if not check.ok} == names - {"value"}
    else:
        assert report, str(report)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "estimator": ({"estimator": "hard"}, "`estimator` is 'hard', expected one of 'reinforce', 'gumbel', 'straight_thr"),
    "no noise": (
        {"rng": None},
        "The estimator 'reinforce' samples, but neither `rng` nor `noise` is given. Pass rng=at",
    ),
    "both": ({"noise": np.zeros(S)}, "The estimator 'reinforce' samples, but both `rng` and `noise` are given. Pass"),
    "noise": (
        {"rng": None, "noise": np.zeros((S, T))},
        "`noise` has shape (7, 4), which does not broadcast to (*batch",
    ),
    "rng": ({"rng": -1}, "`rng` is -1, expected attnarray.Philox(seed) or a seed from 0 to 2^64 - 1."),
    "rng of argmax": ({"estimator": "argmax"}, "`rng` is given, but the estimator 'argmax' does not sample. Leave it"),
    "temperature 0": ({"estimator": "gumbel", "temperature": 0.0}, "`temperature` is 0.0, expected a finite number ab"),
    "temperature -1": ({"estimator": "gumbel", "temperature": -1}, "`temperature` is -1, expected a finite number abo"),
    "temperature of reinforce": ({"temperature": 0.5}, "`temperature` is 0.5, but the estimator 'reinforce' has none."),
    "k of reinforce": (
        {"k": 2},
        "`k` is 2, but the estimator 'reinforce' chooses one key. Leave it out, or choose 'to",
    ),
    "k 0": ({"estimator": "top_k", "rng": None, "k": 0}, "`k` is 0, expected an integer"),
    "k beyond S": ({"estimator": "top_k", "rng": None, "k": 8}, "`k` is 8, but there are 7 keys; expected an integer"),
    "head dim": ({"key": ARRAYS["key"][..., :3]}, "`key` has head dim 3 but `query` has 5; they must match."),
}


@pytest.mark.parametrize(("changes", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_gets_one_clear_error(changes: dict[str, Any], expected: str) -> None:
    says(ValueError, expected, lambda: aa.hard_attention(**{**ARRAYS, "rng": 3, **changes}))


def test_wrong_types() -> None:
    given = {**ARRAYS, "estimator": "argmax"}
    says(TypeError, "Attention has no option `dropout_p`.", lambda: aa.hard_attention(**given, dropout_p=0.1))
    says(TypeError, "`key` is None, expected an array", lambda: aa.hard_attention(**{**given, "key": None}))
    single = {"estimator": "gumbel", "noise": np.zeros(S, "f4")}
    says(TypeError, "noise float32. Bring them to one", lambda: aa.hard_attention(**{**ARRAYS, **single}))
    listed = {"estimator": "gumbel", "noise": [0.0] * S}
    says(TypeError, "`noise` has type list, expected an array.", lambda: aa.hard_attention(**{**ARRAYS, **listed}))


@each_kernels
def test_k_is_at_most_the_number_of_allowed_keys(kernels: str) -> None:
    mask = np.ones((B, T, S), bool)
    mask[1, 2, 2:] = False
    mask[2, 1] = False  # no key at all is not too few
    with aa.use_kernels(kernels):
        assert aa.hard_attention(**ARRAYS, attn_mask=mask, estimator="top_k", k=2).out.shape == (B, T, Dv)
        says(
            ValueError,
            "`k` is 3, but query 2 of batch 1 and head 0 may attend to 2 keys; expected at least k, or none at all.",
            lambda: aa.hard_attention(**ARRAYS, attn_mask=mask, estimator="top_k", k=3),
        )


def test_the_backward_and_the_layer_say_what_is_wrong() -> None:
    result, ctx = aa.hard_attention_fwd(**ARRAYS, **options_of("argmax"))
    backward = aa.hard_attention_bwd
    says(TypeError, "expected HardResult(out, log_prob, entropy): the", lambda: backward(result.out, ctx))
    wrong = result._replace(log_prob=result.out)
    says(ValueError, "`dout.log_prob` has shape (3, 4, 6), expected (3, 4)", lambda: backward(wrong, ctx))
    says(TypeError, "expected the HardContext that the forward", lambda: backward(result, None))
    says(ValueError, "`estimator` is 'soft', expected one of", lambda: HardAttention(4, 4, 4, "soft"))
    says(ValueError, "`dim` is 0, expected an integer", lambda: HardAttention(4, 4, 0))
    says(ValueError, "`k` is 2, but the estimator 'gumbel' chooses one", lambda: HardAttention(4, 4, 4, "gumbel", k=2))


def test_reinforce_cotangent_says_what_is_wrong() -> None:
    result, _ = run("reinforce")
    give = aa.reinforce_cotangent
    says(TypeError, "`result` is an array of shape (3, 4, 6)", lambda: give(result.out, 1.0))
    says(
        ValueError,
        "`cost` has shape (4,), expected (3, 4), the shape of log_prob, or",
        lambda: give(result, np.ones(4)),
    )
    says(ValueError, "`baseline` is nan, expected a finite number or an array.", lambda: give(result, 1.0, math.nan))
    says(ValueError, "`entropy_weight` is inf, expected a finite", lambda: give(result, 1.0, 0.0, math.inf))
    says(TypeError, "`cost` has dtype int64, expected one of", lambda: give(result, np.ones(3, int)))

"""The engine with custom parts: values, blocks, grouped heads, cotangents of weights and lse, and errors."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention import blocks
from attnarray.cases.attend import Cosine, Distance, Sigmoid, Squared

RNG = np.random.default_rng(3)
B, H, HKV, T, S, D, DV = 2, 4, 2, 7, 5, 3, 6
QUERY, KEY, VALUE = (RNG.standard_normal(shape) for shape in ((B, H, T, D), (B, HKV, S, D), (B, HKV, S, DV)))
BIAS = RNG.standard_normal((H, T, S))
SCORERS = {"dot product": aa.DotProduct(), "cosine": Cosine(0.5 + RNG.random(H))}
MODIFIERS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "two": (Squared(0.5 + RNG.random(B)), Distance(RNG.random(H))),
}
NORMALIZERS = {
    "softmax": aa.Softmax(),
    "sinks": aa.Softmax(RNG.standard_normal(H)),
    "sparsemax": aa.Entmax(2.0),
    "sigmoid": Sigmoid(RNG.standard_normal(H)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"is_causal": True, "q_offset": 1, "kv_lengths": np.array([4, 5]), "bias": BIAS, "softcap": 2.0},
    "dropout": {"dropout_p": 0.3, "rng": 5, "window": (3, 1)},
}
COMBINATIONS = list(itertools.product(SCORERS, MODIFIERS, NORMALIZERS, OPTIONS))
ROUNDING = 1e-13  # sums of some ten numbers near 1, in float64


def parts(scorer: str, modifiers: str, normalizer: str) -> dict[str, Any]:
    return {"scorer": SCORERS[scorer], "modifiers": MODIFIERS[modifiers], "normalizer": NORMALIZERS[normalizer]}


@pytest.mark.parametrize(("scorer", "modifiers", "normalizer", "options"), COMBINATIONS)
def test_gradients_of_all_combinations(scorer: str, modifiers: str, normalizer: str, options: str) -> None:
    given = {**parts(scorer, modifiers, normalizer), **OPTIONS[options]}
    assert aa.gradcheck(aa.attend, QUERY, KEY, VALUE, **given, max_elements=40)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(("scorer", "modifiers", "normalizer", "options"), COMBINATIONS[::5])
def test_the_size_of_the_blocks_does_not_matter(
    scorer: str, modifiers: str, normalizer: str, options: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**parts(scorer, modifiers, normalizer), **OPTIONS[options]}

    def results() -> list[np.ndarray]:
        with aa.use_kernels(kernels):
            out, ctx = aa.attend_fwd(QUERY, KEY, VALUE, **given)
            grads = aa.attend_bwd(np.cos(out), ctx)
            return [out, aa.attention_weights(ctx), *(leaf for _, leaf in aa.tree.flatten(grads) if leaf is not None)]

    expected = results()
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 1)  # a query at a time
    for found, same in zip(results(), expected, strict=True):
        np.testing.assert_allclose(found, same, rtol=0, atol=ROUNDING)


def test_the_default_parts_are_scaled_dot_product_attention() -> None:
    for options in OPTIONS.values():
        out, pullback = aa.vjp(aa.attend, QUERY, KEY, VALUE, **options)
        expected, expected_pullback = aa.vjp(aa.scaled_dot_product_attention, QUERY, KEY, VALUE, **options)
        np.testing.assert_array_equal(out, expected)
        found, grads = pullback(np.sin(out)), expected_pullback(np.sin(out))
        for name in ("query", "key", "value"):
            np.testing.assert_array_equal(getattr(found, name), getattr(grads, name))
        assert found.scorer is found.modifiers is found.normalizer is None


def test_entmax_as_a_normalizer_is_entmax_attention() -> None:
    out = aa.attend(QUERY, KEY, VALUE, normalizer=aa.Entmax(1.4), is_causal=True)
    np.testing.assert_array_equal(out, aa.entmax_attention(QUERY, KEY, VALUE, alpha=1.4, is_causal=True))


@pytest.mark.parametrize("name", NORMALIZERS)
def test_masked_keys_and_values_may_hold_nan(name: str) -> None:
    key, value = KEY.copy(), VALUE.copy()
    key[:, :, 3:], value[:, :, 3:] = np.nan, np.inf
    given = {**parts("dot product", "two", name), "kv_lengths": 3}
    (out, ctx), (expected, finite) = (
        aa.attend_fwd(QUERY, key, value, **given),
        aa.attend_fwd(QUERY, KEY, VALUE, **given),
    )
    np.testing.assert_array_equal(out, expected)
    grads, expected_grads = aa.attend_bwd(np.cos(out), ctx), aa.attend_bwd(np.cos(out), finite)
    for (_, found), (_, same) in zip(aa.tree.flatten(grads), aa.tree.flatten(expected_grads), strict=True):
        if found is not None:
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("modifiers", MODIFIERS)
def test_a_cotangent_of_the_weights(modifiers: str, normalizer: str) -> None:
    """The gradient of sum(weights * dweights), by differences of a step of 1e-5, whose error is about 1e-10."""
    given = {**parts("cosine", modifiers, normalizer), **OPTIONS["masked"]}
    dweights = RNG.standard_normal((B, H, T, S))

    def loss(query: np.ndarray) -> float:
        weights = aa.attention_weights(aa.attend_fwd(query, KEY, VALUE, **given)[1])
        return float(np.sum(np.where(np.isfinite(weights), weights, 0.0) * dweights))

    out, ctx = aa.attend_fwd(QUERY, KEY, VALUE, **given)
    found = aa.attend_bwd(np.zeros_like(out), ctx, dweights=dweights).query
    for index in [(0, 0, 3, 1), (1, 2, 6, 0), (1, 3, 2, 2)]:
        step = np.zeros_like(QUERY)
        step[index] = 1e-5
        numeric = (loss(QUERY + step) - loss(QUERY - step)) / 2e-5
        assert abs(found[index] - numeric) < 1e-7 * max(1.0, abs(numeric))


HEADS = aa.layers.MultiHeadAttention(D, 1)
MECHANISMS: dict[str, Any] = {
    "scaled_dot_product_attention": lambda f, q: f(q, KEY, VALUE, is_causal=True, q_offset=1),
    "sparsemax_attention": lambda f, q: f(q, KEY, VALUE),
    "additive_attention": lambda f, q: f(q[:, 0], KEY[:, 0], VALUE[:, 0], np.ones(D), kv_lengths=4),
    "multiplicative_attention": lambda f, q: f(q[:, 0], KEY[:, 0], VALUE[:, 0], np.eye(D), score="general"),
    "scaled_attention": lambda f, q: f(
        q[:, 0], KEY[:, 0], VALUE[:, 0], softcap=2.0, inverse_temperature=np.ones((B, T))
    ),
    "pairwise_attention": lambda f, q: f(q[:, 0], np.ones((4, 2 * D)), np.ones(4), is_causal=True),
    "convolutional_attention": lambda f, q: f(q[:, 0], np.ones((4, D, 3)), np.ones((4, D, 3))),
    "relative_attention": lambda f, q: f(
        q, KEY, VALUE, np.ones((HKV, T + S - 1, D)), np.ones((H, D)), np.ones((H, D)), window=(3, 3)
    ),
    "multi_head_attention": lambda f, q: f(q[:, 0], params=HEADS.init(aa.Philox(0), dtype="float64"), num_heads=1),
    "local_attention": lambda f, q: f(
        q[:, 0],
        KEY[:, 0],
        VALUE[:, 0],
        np.ones((3, D)),
        np.ones(3),
        alignment="predictive",
        window=2,
        kv_lengths=[4, 5],
        bias=np.linspace(0, 1, S),
        dropout_p=0.3,
        rng=1,
    ),
    "local_attention in a band": lambda f, q: f(q[:, 0], KEY[:, 0], VALUE[:, 0], window=2),
    "recurrent_attention": lambda f, q: f(
        q[:, 0], KEY[:, 0], np.ones((8, 2 * D)), np.ones((8, 2)), np.ones((3, 2)), np.ones(3), is_causal=True
    ),
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_mechanism_takes_a_cotangent_of_its_weights_and_lse(name: str) -> None:
    """By differences, as above; the context of each mechanism has what `attention_weights` and the lse need."""
    call, (fwd, bwd) = MECHANISMS[name], (getattr(aa, f"{name.split()[0]}_{direction}") for direction in ("fwd", "bwd"))
    out, ctx = call(fwd, QUERY)
    weights = aa.attention_weights(ctx)
    dweights = RNG.standard_normal(weights.shape)
    lse = _lse(ctx)
    cotangents: dict[str, Any] = {"dweights": dweights}
    if lse is not None:
        cotangents["dlse"] = RNG.standard_normal(lse.shape).reshape(weights.shape[:-1])

    def loss(query: np.ndarray) -> float:
        _, context = call(fwd, query)
        total = float(np.sum(aa.attention_weights(context) * dweights))
        return (
            total
            if lse is None
            else total + float(np.sum(_lse(context).reshape(weights.shape[:-1]) * cotangents["dlse"]))
        )

    grads = bwd(np.zeros_like(out), ctx, **cotangents)
    found = grads.query if hasattr(grads, "query") else grads.x
    for index in [(0, 0, 3, 1), (1, 0, 6, 0)]:
        step = np.zeros_like(QUERY)
        step[index] = 1e-5
        numeric = (loss(QUERY + step) - loss(QUERY - step)) / 2e-5
        entry = found[index] if found.ndim == 4 else found[index[0], *index[2:]]
        assert abs(entry - numeric) < 1e-7 * max(1.0, abs(numeric))


def _lse(ctx: Any) -> Any:
    while not hasattr(ctx, "lse"):
        ctx = ctx.attention
    return ctx.lse


class Table(NamedTuple):
    """A scorer whose scores are its own array."""

    values: np.ndarray  # (B, H, T, S)

    def scores(self, q: Any, k: Any, rows: slice) -> Any:
        return self.values

    def backward(self, dscores: Any, q: Any, k: Any, rows: slice) -> Any:
        return np.zeros_like(q), np.zeros_like(k), Table(dscores)


@pytest.mark.parametrize(
    "parts", [{}, {"normalizer": aa.Entmax(1.5)}, {"softcap": 2.0}, {"modifiers": (Distance(np.ones(H)),)}]
)
def test_the_array_of_a_scorer_is_not_overwritten(parts: dict[str, Any]) -> None:
    given = RNG.standard_normal((B, H, T, S))
    scorer = Table(given.copy())
    out, ctx = aa.attend_fwd(QUERY, KEY, VALUE, scorer=scorer, is_causal=True, **parts)
    np.testing.assert_array_equal(scorer.values, given)
    grads = aa.attend_bwd(np.ones_like(out), ctx)
    np.testing.assert_array_equal(scorer.values, given)
    assert grads.scorer.values.shape == given.shape


class Forward(NamedTuple):
    """A scorer without a backward."""

    weight: np.ndarray

    def scores(self, q: Any, k: Any, rows: slice) -> Any:
        return q @ k.mT * self.weight


REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "a function": (TypeError, "`scorer` is <function", {"scorer": lambda q, k: q}),
    "a scorer": (TypeError, "`normalizer`, a Cosine, has no method `weights`", {"normalizer": Cosine(np.ones(H))}),
    "a normalizer": (TypeError, "`modifiers[0]`, a Sigmoid, has no method", {"modifiers": [Sigmoid(np.ones(H))]}),
    "an integer array": (TypeError, "`scorer.temperature` has dtype int64", {"scorer": Cosine(np.ones(H, int))}),
    "float32 beside float64": (TypeError, "different dtypes", {"scorer": Cosine(np.ones(H, np.float32))}),
    "sinks of another size": (ValueError, "`sinks` has shape (3,)", {"normalizer": aa.Softmax(np.ones(3))}),
    "an unknown option": (TypeError, "Attention has no option `sinks`", {"sinks": np.ones(H)}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_part_is_refused(name: str) -> None:
    error, message, given = REFUSED[name]
    with pytest.raises(error) as caught:
        aa.attend(QUERY, KEY, VALUE, **given)
    assert message in str(caught.value)


def test_a_missing_backward_is_named() -> None:
    out, ctx = aa.attend_fwd(QUERY, KEY, VALUE, scorer=Forward(np.ones(())))
    with pytest.raises(TypeError, match="`scorer`, a Forward, has no method `backward`"):
        aa.attend_bwd(out, ctx)


def test_only_a_softmax_has_an_lse() -> None:
    out, ctx = aa.attend_fwd(QUERY, KEY, VALUE, normalizer=aa.Entmax(1.5))
    with pytest.raises(ValueError, match="only the weights of a softmax have an lse"):
        aa.attend_bwd(out, ctx, dlse=np.ones((B, H, T)))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_narrow_dtypes_are_kept(dtype: str) -> None:
    given = aa.tree.map(lambda x: x.astype(dtype), (QUERY, KEY, VALUE, parts("cosine", "two", "sinks")))
    out, ctx = aa.attend_fwd(*given[:3], **given[3])
    grads = aa.attend_bwd(out, ctx)
    assert {str(leaf.dtype) for _, leaf in aa.tree.flatten((out, grads)) if leaf is not None} == {dtype}


@pytest.mark.parametrize("axis", [0, 2])
def test_there_may_be_no_batches_or_positions(axis: int) -> None:
    given = [np.take(x, [], axis=axis) for x in (QUERY, KEY, VALUE)]
    scorer = Cosine(np.ones(H))
    out, ctx = aa.attend_fwd(*given, scorer=scorer, modifiers=[Distance(np.ones(H))])
    grads = aa.attend_bwd(out, ctx)
    assert out.shape == (*given[0].shape[:3], DV)
    assert [grad.shape for grad in grads[:3]] == [x.shape for x in given]
    np.testing.assert_array_equal(grads.scorer.temperature, np.zeros(H))

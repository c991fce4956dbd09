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
    "sigmoid_attention": lambda f, q: f(q, KEY, VALUE, np.arange(H) * 0.1, is_causal=True),
    "differential_attention": lambda f, q: f(q, KEY, VALUE[:, :1], np.array([0.3, 0.6]), kv_lengths=4),
    "forgetting_attention": lambda f, q: f(q, QUERY, QUERY, np.full((B, H, T), -0.3), is_causal=True),
    "linformer_attention": lambda f, q: f(q, KEY, VALUE, np.cos(np.arange(3.0 * S)).reshape(3, S)),
    "axial_attention": lambda f, q: f(q, QUERY, QUERY, axis=1, is_causal=True),
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
    "an integer array": (TypeError, "`scorer.temperature` has dtype int64, expected one of float16, bfloat16, float32, "
                         "float64. Convert it first, or name an array that has no gradient in the class attribute "
                         "NO_GRADIENT.",
                         {"scorer": Cosine(np.ones(H, int))}),
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


class Scripted(NamedTuple):
    """A scorer, modifier or normalizer whose methods return what it is told to."""

    results: dict[str, Any]
    weight: Any = None

    def scores(self, q: Any, k: Any, rows: slice) -> Any:
        return self._changed("scores", q @ k.mT)

    def apply(self, scores: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return self._changed("apply", scores)

    def weights(self, scores: Any, rows: slice) -> Any:
        return self._changed("weights", (1.0 / (1.0 + np.exp(-scores)), None))

    def backward(self, dy: Any, *args: Any) -> Any:
        if isinstance(args[-1], slice) and len(args) == 3:
            return self._changed("backward", (dy @ args[1], dy.mT @ args[0], self))
        return self._changed("backward", (dy, self))

    def _changed(self, method: str, right: Any) -> Any:
        return self.results[method](right) if method in self.results else right


SHAPE = (B, H, T, S)
EXPECTED = f"expected a floating array of shape {SHAPE}"
WRONG_RESULTS: dict[str, tuple[str, str, Any, str]] = {
    "no scores": ("scorer", "scores", lambda x: None, f"returned None, expected a floating array of shape {SHAPE}"),
    "scores of fewer queries": (
        "scorer",
        "scores",
        lambda x: x[:, :, 1:],
        f"returned an array of shape {(B, H, T - 1, S)}",
    ),
    "scores of more queries": ("scorer", "scores", lambda x: np.concat([x, x], 2), EXPECTED),
    "scores of one batch": ("scorer", "scores", lambda x: x[:1], EXPECTED),
    "integers": ("scorer", "scores", lambda x: x.astype(int), "and dtype int64, expected a floating array"),
    "a modifier in float32": (
        "modifiers",
        "apply",
        lambda x: x.astype(np.float32),
        f"and dtype float32, expected a floating array of shape {SHAPE} and at least the precision of float64",
    ),
    "a modifier's gradient in float16": (
        "modifiers",
        "backward",
        lambda x: (x[0].astype(np.float16), x[1]),
        "and at least the precision of float64",
    ),
    "a masked array": ("modifiers", "apply", np.ma.array, "MaskedArray"),
    "scores without batches": ("modifiers", "apply", lambda x: x[0], f"returned an array of shape {SHAPE[1:]}"),
    "weights alone": ("normalizer", "weights", lambda x: x[0], "expected 2 values"),
    "weights of fewer keys": ("normalizer", "weights", lambda x: (x[0][..., 1:], None), EXPECTED),
    "a number kept": (
        "normalizer",
        "weights",
        lambda x: (x[0], 1.0),
        f"keeps 1.0, expected None or arrays of shape ({B}, {H}, {T}, ...)",
    ),
    "two gradients of a scorer": ("scorer", "backward", lambda x: x[:2], "returned 2 values, expected 3 values"),
    "gradients in another order": ("scorer", "backward", lambda x: (x[1], x[0], x[2]), "for the queries, expected"),
    "keys summed over heads": ("scorer", "backward", lambda x: (x[0], x[1][:, :1], x[2]), "for the keys, expected"),
    "an array for a value": ("scorer", "backward", lambda x: (*x[:2], np.ones(3)), "expected a Scripted of gradients"),
    "a scorer's gradient of another shape": (
        "scorer",
        "backward",
        lambda x: (*x[:2], x[2]._replace(weight=np.ones(4))),
        "for `weight`, expected a floating array of shape (3,)",
    ),
    "one gradient of a modifier": ("modifiers", "backward", lambda x: x[0], "expected 2 values"),
    "a modifier's gradient of another shape": (
        "modifiers",
        "backward",
        lambda x: (x[0], x[1]._replace(weight=np.ones((1, 3)))),
        "for `weight`, expected",
    ),
    "fewer scores of a modifier": ("modifiers", "backward", lambda x: (x[0][:, :1], x[1]), EXPECTED),
    "a normalizer's number": (
        "normalizer",
        "backward",
        lambda x: (x[0], x[1]._replace(weight=1.0)),
        "returned 1.0 for `weight`",
    ),
    "fewer scores of a normalizer": ("normalizer", "backward", lambda x: (x[0][1:], x[1]), EXPECTED),
}


@pytest.mark.parametrize("options", [{}, {"is_causal": True, "bias": np.zeros(SHAPE)}], ids=["plain", "masked"])
@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_wrong_results_of_a_part_are_named(name: str, options: dict[str, Any]) -> None:
    part, method, wrong, message = WRONG_RESULTS[name]
    scripted = Scripted({method: wrong}, np.ones(3))
    given = {**options, part: [scripted] if part == "modifiers" else scripted}

    def both() -> None:
        out, ctx = aa.attend_fwd(QUERY, KEY, VALUE, **given)
        aa.attend_bwd(out, ctx)

    with pytest.raises((TypeError, ValueError)) as caught:
        both()
    assert message in str(caught.value)
    assert "MaskedArray" in message or f"`Scripted.{method}`" in str(caught.value)


WRITES: dict[str, tuple[str, str, Any]] = {
    "a scorer": ("scorer", "scores", lambda q, k, rows: np.multiply(q, 2.0, out=q) @ k.mT),
    "a modifier": ("modifiers", "apply", lambda scores, *_: np.add(scores, 1.0, out=scores)),
    "a normalizer": ("normalizer", "weights", lambda scores, rows: (np.exp(scores, out=scores), None)),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_part_cannot_write_to_what_it_is_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part, method, write = WRITES[name]
    monkeypatch.setattr(Scripted, method, lambda self, *args: write(*args))
    given = QUERY.copy()
    scripted = Scripted({})
    with pytest.raises(ValueError, match="read-only"):
        aa.attend(given, KEY, VALUE, softcap=2.0, **{part: [scripted] if part == "modifiers" else scripted})
    np.testing.assert_array_equal(given, QUERY)


@pytest.mark.parametrize("modifiers", [None, 3, Distance(np.ones(H)), iter([Distance(np.ones(H))])])
def test_modifiers_are_a_list_or_tuple(modifiers: Any) -> None:
    with pytest.raises(TypeError, match="expected a list or tuple of NamedTuples"):
        aa.attend(QUERY, KEY, VALUE, modifiers=modifiers)


class PerQuery(Scripted):
    """One whose weight belongs to queries."""

    PER_QUERY = ("weight",)


@pytest.mark.parametrize("weight", [1.0, np.ones((B, H)), np.ones((B, H, T + 1)), np.ones((B, H, 0, 3))])
def test_arrays_of_queries_have_a_row_for_each(weight: Any) -> None:
    with pytest.raises(ValueError, match=r"`scorer` has .* as `weight`, which PER_QUERY names; expected"):
        aa.attend(QUERY, KEY, VALUE, scorer=PerQuery({}, weight))


class Picked(NamedTuple):
    """Scores times a weight that a table picks for each key."""

    table: np.ndarray  # (S,) integers
    weights: np.ndarray

    NO_GRADIENT = ("table",)

    def scores(self, q: Any, k: Any, rows: slice) -> Any:
        return q @ k.mT * self.weights[self.table]

    def backward(self, dscores: Any, q: Any, k: Any, rows: slice) -> Any:
        scaled, dweights = dscores * self.weights[self.table], np.zeros_like(self.weights)
        np.add.at(dweights, self.table, (dscores * (q @ k.mT)).sum((0, 1, 2)))
        return scaled @ k, scaled.mT @ q, self._replace(weights=dweights)


def test_what_has_no_gradient_has_none_when_it_is_returned() -> None:
    out, ctx = aa.attend_fwd(QUERY, KEY, VALUE, scorer=Picked(np.arange(S) % 2, np.array([1.0, 0.5])))
    grads = aa.attend_bwd(np.ones_like(out), ctx)
    assert grads.scorer.table is None
    assert grads.scorer.weights.shape == (2,)


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

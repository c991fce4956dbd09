"""Modifiers written for one score: compiled, as array code, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray.kernels.numba import unavailable

RNG = np.random.default_rng(5)
B, H, HKV, T, S, D, DV = 2, 4, 2, 37, 41, 8, 6
QUERY, KEY, VALUE = (RNG.standard_normal(shape) for shape in ((B, H, T, D), (B, HKV, S, D), (B, HKV, S, DV)))
NO_COMPILER = unavailable("numba") or ("" if importlib.util.find_spec("numba") else "numba is not installed")
compiled = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER)


@aa.compiled_modifier
class Capped(NamedTuple):
    """A softcap, and a slope for each head: an index that no key changes."""

    slope: Any  # (H,)
    cap: float = 2.0

    def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return self.cap * np.tanh(score / self.cap) - self.slope[h] * abs(q_idx - kv_idx)

    def mod_backward(self, dscore: Any, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        tanh = np.tanh(score / self.cap)
        return dscore * (1.0 - tanh**2), Capped((h, -dscore * abs(q_idx - kv_idx)))


@aa.compiled_modifier
class Relative(NamedTuple):
    """A learned bias of head and distance, which is clipped; a gate of each key; a temperature; and a table of bits."""

    bias: Any  # (H, 9)
    gate: Any  # (B, S)
    temperature: Any  # ()
    allowed: Any  # (H, S) boolean
    kind: Any  # (S,) integers

    NO_GRADIENT = ("allowed", "kind")

    def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        bucket = np.clip(q_idx - kv_idx, -4, 4) + 4
        scaled = score * self.temperature[()] * self.gate[b, kv_idx] + self.bias[h, bucket]
        return np.where(self.allowed[h, kv_idx] | (q_idx == kv_idx), scaled, -np.inf) + 0.1 * self.kind[kv_idx]

    def mod_backward(self, dscore: Any, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        bucket, gate = np.clip(q_idx - kv_idx, -4, 4) + 4, self.gate[b, kv_idx]
        dtemperature, dgate = dscore * score * gate, dscore * score * self.temperature[()]
        grads = ((h, bucket), dscore), ((b, kv_idx), dgate), ((), dtemperature)
        return dscore * self.temperature[()] * gate, Relative(*grads, None, None)


@aa.compiled_modifier
class Forgetting(NamedTuple):
    """The difference of two entries of one array."""

    decay: Any  # (B, H, S)

    def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + self.decay[b, h, q_idx % 41] - self.decay[b, h, kv_idx]

    def mod_backward(self, dscore: Any, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return dscore, Forgetting([((b, h, q_idx % 41), dscore), ((b, h, kv_idx), -dscore)])


@aa.compiled_modifier
class Shift(NamedTuple):
    """Without arrays."""

    def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score * score * 0.1 + np.where((kv_idx - q_idx) % 3 == 1, 1.0, -1.0)

    def mod_backward(self, dscore: Any, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return 0.2 * score * dscore, self


RELATIVE = Relative(
    RNG.standard_normal((H, 9)), RNG.random((B, S)), np.array(0.7), RNG.random((H, S)) < 0.6, RNG.integers(0, 3, S)
)
MODIFIERS: dict[str, tuple[Any, ...]] = {
    "a slope": (Capped(RNG.random(H)),),
    "tables": (RELATIVE,),
    "two entries": (Forgetting(RNG.standard_normal((B, H, S))),),
    "three in order": (Shift(), Capped(RNG.random(H), 1.5), Forgetting(RNG.standard_normal((B, H, S)))),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "q_offset": np.array([4, 1]), "kv_lengths": np.array([40, 33]), "softcap": 3.0},
    "bias, dropout, sinks": {
        "bias": np.where(RNG.random((H, T, S)) < 0.1, -np.inf, RNG.standard_normal((H, T, S))), "dropout_p": 0.3,
        "rng": 5, "normalizer": aa.Softmax(RNG.standard_normal(H)), "attn_mask": RNG.random((T, S)) < 0.8,
    },
    "tiles": {"attn_mask": aa.Window(9, 2) | aa.Global(3)},
}  # fmt: skip


def results(kernels: Any, dtype: str, **options: Any) -> dict[str, Any]:
    def cast(value: Any) -> Any:
        return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype == float else value

    given = {name: aa.tree.map(cast, value) for name, value in options.items() if name != "attn_mask"}
    with aa.use_kernels(kernels):
        arrays = (cast(x) for x in (QUERY, KEY, VALUE))
        out, ctx = aa.attend_fwd(*arrays, attn_mask=options.get("attn_mask"), **given)
        grads = aa.attend_bwd(np.cos(out).astype(out.dtype), ctx)
    return {"out": out, **{aa.tree.format_path(path): leaf for path, leaf in aa.tree.flatten(grads)}}


@compiled
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("modifiers", MODIFIERS)
def test_compiled_code_equals_array_code(modifiers: str, options: str, dtype: str) -> None:
    given = {"modifiers": MODIFIERS[modifiers], **OPTIONS[options]}
    found, exact = results("numba", dtype, **given), results("reference", "float64", **given)
    assert found.keys() == exact.keys()
    for name, array in found.items():
        assert array.dtype == dtype
        scale = max(1.0, float(np.max(np.abs(exact[name]))))
        np.testing.assert_allclose(array, exact[name], rtol=0, atol=scale * (1e-12 if dtype == "float64" else 3e-5))


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("modifiers", MODIFIERS)
def test_gradients(modifiers: str, options: str, kernels: Any) -> None:
    with aa.use_kernels(kernels):
        given = {"modifiers": MODIFIERS[modifiers], **OPTIONS[options]}
        assert aa.gradcheck(aa.attend, QUERY, KEY, VALUE, **given, max_elements=10)


@compiled
def test_many_panels_on_threads() -> None:
    q, k, v = RNG.standard_normal((3, 1, 4, 400, 16))
    modifiers = [Capped(RNG.random(4)), Forgetting(RNG.standard_normal((1, 4, 400)))]
    found = []
    for kernels in ("numba", "reference"):
        with aa.use_kernels(kernels):
            out, ctx = aa.attend_fwd(q, k, v, modifiers=modifiers, is_causal=True)
            found.append([leaf for _, leaf in aa.tree.flatten((out, aa.attend_bwd(np.sin(out), ctx)))])
    for array, expected in zip(*found, strict=True):
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-11 * max(1.0, np.abs(expected).max()))


def test_other_parts_take_the_array_code() -> None:
    modifiers = MODIFIERS["a slope"]
    for parts in ({"normalizer": aa.Entmax(1.5)}, {"scorer": aa.DotProduct(), "normalizer": aa.Sigmoid()}):
        assert aa.gradcheck(aa.attend, QUERY[:1], KEY[:1], VALUE[:1], modifiers=modifiers, **parts, max_elements=10)


FORMULAS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "exp": lambda x, i, j: np.exp(x), "overflow": lambda x, i, j: np.minimum(np.exp(x * 90.0), 1e3),
    "tanh": lambda x, i, j: np.tanh(x * 0.3) + np.tanh(x * 40.0) + np.tanh((i - j) * 0.05),
    "log": lambda x, i, j: np.log(np.abs(x) + 0.1), "sqrt": lambda x, i, j: np.sqrt(x * x),
    "powers": lambda x, i, j: x**3 + abs(x) ** 0.5 + (x * x + 1) ** -2 + (abs(x) + 1) ** x + 2.0**x + x**0,
    "comparisons": lambda x, i, j: np.where((x < 0) & (i >= j) | ~(i != j) ^ (x <= 1), x, -x) + (x > 0.5),
    "integers": lambda x, i, j: x + (i - 2 * j) // 3 - (j - i) % 5 + (i // (j + 1)) + (-i // 7) * 0.5 + i // (i - j),
    "floor": lambda x, i, j: np.floor(x) + x // 0.3 + x % 0.7, "rounding": lambda x, i, j: (x * 3).astype("int32"),
    "extremes": lambda x, i, j: np.maximum(x, 0) - np.minimum(0.3, x) + np.clip(i - j, -2, 3) + np.square(x),
    "constants": lambda x, i, j: 0.5, "numpy scalars": lambda x, i, j: np.float64(0.1) * x + np.int64(3) + (i == 1),
    "reflected": lambda x, i, j: 1.0 - x + 2.0 / (1.0 + x * x) + (7 // (i + 1)) + 9 % (j + 2) + +x,
    "a namespace": lambda x, i, j: aa.namespace_of(x).exp(-abs(x)) + aa.namespace_of(x, i).astype(i, x.dtype) * 0.1,
    "casts": lambda x, i, j: np.where(x, 1, 2) + (i < j).astype(x.dtype) * np.logical_not(x > 0),
}  # fmt: skip


class Formula:
    """Made of a function of score and indices."""

    @staticmethod
    def of(function: Callable[[Any, Any, Any], Any]) -> Any:
        class Of(NamedTuple):
            def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
                return function(score, q_idx, kv_idx)

        return aa.compiled_modifier(Of)()


@compiled
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", FORMULAS)
def test_every_operation_is_that_of_arrays(name: str, dtype: str) -> None:
    q, k, v = (x[:1].astype(dtype) for x in (QUERY, KEY, VALUE))
    found = []
    for kernels in ("numba", "reference"):
        with aa.use_kernels(kernels), np.errstate(all="ignore"):
            found.append(aa.attend(q, k, v, modifiers=[Formula.of(FORMULAS[name])]))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-12 if dtype == "float64" else 2e-5)
    chosen = aa.explain(aa.attend, q, k, v, modifiers=[Formula.of(FORMULAS[name])]).choices[0]
    assert chosen.function == "attention.engine:modified_attention"
    assert chosen.reason == ""


NOT_COMPILED: dict[str, tuple[Callable[[Any, Any, Any], Any], str]] = {
    "a sum": (lambda x, i, j: x - np.sum(x) * 0, "`sum` is none of the functions that can be compiled"),
    "a shape": (lambda x, i, j: x + x.shape[0] * 0.0, "has no attribute 'shape'"),
    "an out": (lambda x, i, j: np.add(x, 1.0, where=True), "in a form that cannot be compiled"),
    "an array": (lambda x, i, j: x + np.ones(S), "ndarray is neither a number nor an array that is a field"),
    "a large number": (lambda x, i, j: x + i * 2**40 * 0, "needs more than 32 bits"),
}  # fmt: skip


@compiled
@pytest.mark.parametrize("name", NOT_COMPILED)
def test_what_cannot_be_compiled_is_array_code_and_explain_says_why(name: str) -> None:
    function, message = NOT_COMPILED[name]
    choice = aa.explain(aa.attend, QUERY, KEY, VALUE, modifiers=[Formula.of(function)]).choices[0]
    assert choice.kernel == "reference"
    assert "modifiers[0], a Of: `mod` cannot be compiled" in choice.reason
    assert message in choice.reason


@compiled
@pytest.mark.parametrize("kernels", ["numba", "reference"])
def test_an_index_out_of_range_is_an_error(kernels: Any) -> None:
    class Far(NamedTuple):
        table: Any

        def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return score + self.table[kv_idx]

    modifier = aa.compiled_modifier(Far)(np.ones(S - 1))
    with aa.use_kernels(kernels), pytest.raises(IndexError):
        aa.attend(QUERY, KEY, VALUE, modifiers=[modifier])


def test_a_missing_backward_is_named() -> None:
    out, ctx = aa.attend_fwd(QUERY, KEY, VALUE, modifiers=[Formula.of(FORMULAS["exp"])])
    with pytest.raises(TypeError, match=r"`modifiers\[0\]`, a Of, has no method `mod_backward`"):
        aa.attend_bwd(out, ctx)


SCORES = RNG.standard_normal((B, H, 5, S))


@pytest.mark.parametrize("modifiers", MODIFIERS)
def test_gradients_of_a_modifier_alone(modifiers: str) -> None:
    for modifier in MODIFIERS[modifiers]:
        report = aa.gradcheck(modifier, SCORES, q_offset=4, max_elements=40)
        assert report, report
        floats = {f"modifier.{name}" for name, x in modifier._asdict().items() if np.asarray(x).dtype == float}
        arrays = {name for name in floats if isinstance(getattr(modifier, name[9:]), np.ndarray)}
        assert {check.name for check in report.inputs} == {"scores", *arrays}


def test_a_wrong_gradient_of_a_modifier_alone_is_found() -> None:
    wrong = Scripted(lambda x: 2.0 * x, lambda d, h: (d, Scripted(None)))
    report = aa.gradcheck(wrong, SCORES)
    assert not report
    assert str(report).startswith("Scripted: gradients")
    with pytest.raises(TypeError, match="Of has no method `mod_backward`"):
        aa.gradcheck(Formula.of(FORMULAS["exp"]), SCORES)
    with pytest.raises(ValueError, match=r"`scores` has shape \(5, 41\), expected \(B, H, T, S\)"):
        aa.gradcheck(wrong, SCORES[0, 0])


class Scripted(NamedTuple):
    """A modifier that returns what it is told to."""

    modified: Any
    gradients: Any = None
    weight: Any = None

    def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return self.modified(score)

    def mod_backward(self, dscore: Any, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return self.gradients(dscore, h)


aa.compiled_modifier(Scripted)


def keep(score: Any) -> Any:
    return score + 0.0


WRONG: dict[str, tuple[Any, str]] = {
    "None": (Scripted(lambda x: None), "`Scripted.mod` returned None, expected a floating array of shape"),
    "another shape": (Scripted(lambda x: np.ones(S + 1)), "`Scripted.mod` returned an array of shape (42,)"),
    "booleans": (Scripted(lambda x: x > 0), "`Scripted.mod` returned an array of shape (2, 4, 37, 41) and dtype bool"),
    "another precision": (
        Scripted(lambda x: x.astype(np.float16)),
        "and dtype float16, expected a floating array of shape (2, 4, 37, 41) and at least the precision of float",
    ),
    "one result": (Scripted(keep, lambda d, h: d), "`Scripted.mod_backward` returned"),
    "an array for a value": (Scripted(keep, lambda d, h: (d, d)), "expected a Scripted of pairs of indices and"),
    "no pair": (
        Scripted(keep, lambda d, h: (d, Scripted(None, None, d)), np.ones(H)),
        "for `weight`, expected (indices, gradient) of the number that was looked up",
    ),
    "another number of indices": (
        Scripted(keep, lambda d, h: (d, Scripted(None, None, ((h, h), d))), np.ones(H)),
        "2 indices",
    ),
    "a gradient of another shape": (
        Scripted(keep, lambda d, h: (np.ones(3), Scripted(None))),
        "`Scripted.mod_backward` returned an array of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_results_are_named(name: str, kernels: Any) -> None:
    modifier, message = WRONG[name]

    def both() -> None:
        out, ctx = aa.attend_fwd(QUERY, KEY, VALUE, modifiers=[modifier])
        aa.attend_bwd(out, ctx)

    with aa.use_kernels(kernels), pytest.raises((TypeError, ValueError)) as caught:
        both()
    assert message in str(caught.value)


def test_an_exception_names_the_modifier() -> None:
    def fail(score: Any) -> Any:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost") as caught:
        aa.attend(QUERY, KEY, VALUE, modifiers=[Shift(), Scripted(fail)])
    assert caught.value.__notes__ == ["Raised by modifiers[1], a Scripted."]


@pytest.mark.parametrize("kind", [3, Formula, lambda score: score])
def test_what_is_no_class_of_arrays_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match="expected a class that is a NamedTuple"):
        aa.compiled_modifier(kind)


def test_a_class_without_mod_is_refused() -> None:
    class Empty(NamedTuple):
        weight: Any

    with pytest.raises(TypeError, match="Empty has no method `mod`"):
        aa.compiled_modifier(Empty)

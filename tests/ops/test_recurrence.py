"""Properties of recurrence and convolution beyond the contract: masks, parts, directions, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from tests.support.bad_calls import BAD_SEQUENCES, SEQUENCES
from tests.support.libraries import Library, assert_trees_close
from tests.support.messages import says

ROUNDING = 1e-13  # sums of a few dozen products in another order


RECURRENT = ("rnn", "lstm", "gru")


GATES = {"rnn": 1, "lstm": 4, "gru": 3}


SHARED = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


each_recurrent = pytest.mark.parametrize("name", RECURRENT)


each_direction = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@pytest.mark.parametrize(
    ("function", "changes", "error", "expected"),
    [bad[1:] for bad in BAD_SEQUENCES],
    ids=[bad[0] for bad in BAD_SEQUENCES],
)
def test_sequences_say_what_is_wrong(function: str, changes: dict, error: type[Exception], expected: str) -> None:
    says(error, expected, lambda: getattr(aa, function)(**{**SEQUENCES[function], **changes}))


def drawn(name: str, *batch: int, steps: int = 5) -> dict[str, np.ndarray]:
    """All array arguments of a recurrent function but the mask: I 3, H 4."""
    rng, rows = np.random.default_rng(7), GATES[name] * 4
    shapes = {"x": (*batch, steps, 3), "weight_ih": (rows, 3), "weight_hh": (rows, 4)}
    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,), "h0": (*batch, 4)}
    shapes |= {"c0": (*batch, 4)} if name == "lstm" else {}
    return {key: 0.5 * rng.standard_normal(shape) for key, shape in shapes.items()}


def dout_of(result: Any) -> Any:
    """Cotangents that differ everywhere."""
    return tree.map(lambda leaf: np.cos(np.arange(leaf.size)).reshape(leaf.shape), result)


def pulled(name: str, arguments: dict[str, Any], dout: Any = None, **options: Any) -> tuple[Any, Any]:
    """The results, and the gradients for `dout`."""
    result, pullback = aa.vjp(getattr(aa, name), **arguments, **options)
    return result, pullback(dout_of(result) if dout is None else dout)


@each_recurrent
@each_direction
def test_padding_after_a_sequence_changes_nothing(name: str, reverse: bool) -> None:
    lengths, given = (5, 2, 0), drawn(name, 3)
    mask = np.arange(5) < np.array(lengths)[:, None]
    dirty = {**given, "x": np.where(mask[..., None], given["x"], np.nan)}
    dout = dout_of(getattr(aa, name)(**dirty, mask=mask))
    dout = dout._replace(out=np.where(mask[..., None], dout.out, np.nan))
    result, grads = pulled(name, dirty, dout, mask=mask, reverse=reverse)
    sums: dict[str, Any] = dict.fromkeys(SHARED, 0.0)
    for row, length in enumerate(lengths):
        alone = {n: a if n in SHARED else a[row] for n, a in given.items()} | {"x": given["x"][row, :length]}
        of_row = type(dout)(dout.out[row, :length], *(leaf[row] for leaf in dout[1:]))
        its_result, its_grads = pulled(name, alone, of_row, reverse=reverse)
        assert_trees_close([result.out[row, :length], *(leaf[row] for leaf in result[1:])], list(its_result), ROUNDING)
        assert_trees_close(grads.x[row, :length], its_grads.x, ROUNDING)
        assert_trees_close([leaf[row] for leaf in grads[5:7]], list(its_grads[5:7]), ROUNDING)
        np.testing.assert_array_equal(result.out[row, length:], 0)
        np.testing.assert_array_equal(grads.x[row, length:], 0)
        sums = {n: sums[n] + getattr(its_grads, n) for n in SHARED}
    assert_trees_close({n: getattr(grads, n) for n in SHARED}, sums, ROUNDING)


@each_recurrent
@each_direction
def test_a_sequence_cut_in_two_is_the_whole(name: str, reverse: bool) -> None:
    given, f = drawn(name, 2, steps=7), getattr(aa, name)
    whole, grads = pulled(name, given, reverse=reverse)
    dout, parts = dout_of(whole), (slice(0, 3), slice(3, 7))
    first, last = parts[::-1] if reverse else parts
    early, pull_early = aa.vjp(f, **{**given, "x": given["x"][:, first]}, reverse=reverse)
    handed = dict(zip(("h0", "c0"), early[1:], strict=False))
    late, pull_late = aa.vjp(f, **{**given, "x": given["x"][:, last], **handed}, reverse=reverse)
    for part, result in ((first, early), (last, late)):
        assert_trees_close(result.out, whole.out[:, part], ROUNDING)
    assert_trees_close(list(late[1:]), list(whole[1:]), ROUNDING)
    of_late = pull_late(dout._replace(out=dout.out[:, last]))
    of_early = pull_early(type(whole)(dout.out[:, first], *of_late[5:7]))  # the gradients of the states are passed back
    for part, its_grads in ((first, of_early), (last, of_late)):
        assert_trees_close(its_grads.x, grads.x[:, part], ROUNDING)
    assert_trees_close(list(of_early[5:7]), list(grads[5:7]), ROUNDING)
    for n in SHARED:
        assert_trees_close(getattr(of_early, n) + getattr(of_late, n), getattr(grads, n), ROUNDING)


@each_recurrent
def test_reverse_is_the_flipped_sequence(name: str) -> None:
    given, mask = drawn(name, 2), np.array([[1, 0, 1, 1, 0], [1, 1, 1, 0, 1]]) == 1
    result, grads = pulled(name, given, mask=mask, reverse=True)
    dout = dout_of(result)
    reversed_arguments = {**given, "x": given["x"][:, ::-1]}
    its_result, its_grads = pulled(name, reversed_arguments, dout._replace(out=dout.out[:, ::-1]), mask=mask[:, ::-1])
    assert_trees_close(its_result._replace(out=its_result.out[:, ::-1]), result, ROUNDING)
    assert_trees_close(its_grads._replace(x=its_grads.x[:, ::-1]), grads, ROUNDING)


@each_recurrent
def test_no_step_and_no_sequence(name: str, library: Library) -> None:
    for batch, steps in ((2, 0), (0, 5), (0, 0)):
        given = drawn(name, batch, steps=steps)
        f = getattr(aa, name)
        result, pullback = aa.vjp(f, **library.moved(given))
        assert tuple(result.out.shape) == (batch, steps, 4)
        states = [given[n] for n in ("h0", "c0") if n in given]
        assert_trees_close(list(result[1:]), states, 0)
        grads = pullback(result)
        assert_trees_close(
            {n: getattr(grads, n) for n in given if n in SHARED},
            {n: np.zeros_like(a) for n, a in given.items() if n in SHARED},
            0,
        )
        assert_trees_close(list(grads[5:7]), states, 0)
        assert tuple(grads.x.shape) == given["x"].shape


@each_recurrent
def test_a_cotangent_that_is_none_counts_as_zero(name: str) -> None:
    given = drawn(name, 2)
    result, pullback = aa.vjp(getattr(aa, name), **given)
    dout = dout_of(result)
    nothing = tree.map(np.zeros_like, dout)
    for place in range(len(dout)):
        alone = [leaf if n == place else None for n, leaf in enumerate(dout)]
        expected = [leaf if n == place else zeros for n, (leaf, zeros) in enumerate(zip(dout, nothing, strict=True))]
        assert_trees_close(pullback(tuple(alone)), pullback(expected), 0)
    assert_trees_close(pullback([None] * len(dout)), pullback(nothing), 0)


@each_recurrent
def test_backward_checks_its_cotangents(name: str) -> None:
    _, fwd, bwd = (getattr(aa, name + suffix) for suffix in ("", "_fwd", "_bwd"))
    result, ctx = fwd(**drawn(name, 2))
    kind = type(result).__name__
    says(TypeError, f"expected {kind}(out, h", lambda: bwd(result.out, ctx))
    says(TypeError, f"`dout` is None, expected {kind}(out, h", lambda: bwd(None, ctx))
    says(
        ValueError,
        "`dout.out` has shape (1, 5, 4), expected (2, 5, 4)",
        lambda: bwd((result.out[:1], *result[1:]), ctx),
    )
    says(ValueError, "`dout.h` has shape (4,), expected (2, 4)", lambda: bwd(result._replace(h=result.h[0]), ctx))
    says(TypeError, "`dout.h` has dtype int64", lambda: bwd(result._replace(h=result.h.astype(int)), ctx))
    says(TypeError, "different dtypes: dout.h float32, x", lambda: bwd(result._replace(h=result.h.astype("f4")), ctx))
    says(TypeError, f"expected the {kind[:-6]}Context that the forward pass", lambda: bwd(result, result))


@each_recurrent
def test_masked_steps_have_no_gradient_whatever_the_cotangent(name: str) -> None:
    given, mask = drawn(name, 2), np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 0]]) == 1
    result = getattr(aa, name)(**given, mask=mask)
    _, grads = pulled(name, given, result._replace(h=np.full((2, 4), np.nan)), mask=mask)
    np.testing.assert_array_equal(np.any(np.isnan(grads.x), axis=-1), mask)
    np.testing.assert_array_equal(grads.x[~mask], 0)


@each_recurrent
def test_gates_saturate_without_a_warning(name: str) -> None:
    given = {n: 1e4 * a for n, a in drawn(name, 2).items() if n not in ("h0", "c0")}
    result, grads = pulled(name, given)
    assert all(np.all(np.isfinite(leaf)) for _, leaf in tree.flatten((result, grads)))


def test_states_of_16_bit_floats_are_summed_in_32() -> None:
    ones = np.ones((3000, 1), "f2")  # in float16, 2048 + 1 is 2048
    assert aa.rnn(ones, ones[:1], ones[:1], nonlinearity="relu").h == 3000


def test_a_context_keeps_gates_and_states_alone() -> None:
    for name, per_step in (("rnn", 1), ("lstm", 4 + 2), ("gru", 3 + 1)):
        given = drawn(name, 2)
        _, ctx = getattr(aa, name + "_fwd")(**given)
        assert tree.nbytes(ctx) == tree.nbytes(given) + per_step * 8 * 2 * 5 * 4

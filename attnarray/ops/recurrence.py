"""Shared code of `rnn`, `lstm` and `gru`: validation, input products, states over time, gradients of the weights.

Batch axes are flattened to one axis of N sequences. G is the number of gates, each with H rows of the weights.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array, accumulator_dtype, device_of, namespace_of
from attnarray.numpy_arrays import read_only
from attnarray.ops.correlate import multiply_columns, multiply_rows


class Recurrent(NamedTuple):
    """The common arguments of recurrent functions."""

    x: Array  # (*batch, T, I)
    weight_ih: Array  # (G H, I)
    weight_hh: Array  # (G H, H)
    bias_ih: Array | None  # (G H,)
    bias_hh: Array | None  # (G H,)
    h0: Array | None  # (*batch, H)
    mask: Array | None  # (*batch, T)
    reverse: bool

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.x.shape[:-2])

    @property
    def sequences(self) -> int:
        """N"""
        return math.prod(self.batch)

    @property
    def hidden(self) -> int:
        """H"""
        return int(self.weight_hh.shape[1])

    @property
    def steps(self) -> range:
        """The positions in the order of the recurrence."""
        positions = range(self.x.shape[-2])
        return positions[::-1] if self.reverse else positions


def checked(
    gates: str,
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    biases: tuple[Array | None, Array | None],
    states: dict[str, Array | None],
    mask: Array | None,
    reverse: bool,
) -> Recurrent:
    """Check the arguments of a recurrent function. `gates` has one letter for each; `states` has h0 and c0."""
    arrays = {"x": x, "weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": biases[0], "bias_hh": biases[1]}
    checks.required(x=x, weight_ih=weight_ih, weight_hh=weight_hh)
    checks.namespace(**arrays, **states, mask=mask)
    checks.floating(**arrays, **states)
    hidden = _check_weights(gates, x, weight_ih, weight_hh)
    because = f"one number per row of `weight_ih`, which has shape {tuple(weight_ih.shape)}"
    for name, bias in (("bias_ih", biases[0]), ("bias_hh", biases[1])):
        if bias is not None:
            checks.shape(name, bias, (weight_ih.shape[0],), because)
    *batch, T, _ = x.shape
    for name, state in states.items():
        if state is not None:
            because = f"H = {hidden} numbers for each sequence of `x`, which has shape {tuple(x.shape)}"
            checks.shape(name, state, (*batch, hidden), because)
    if mask is not None:
        checks.boolean("mask", mask)
        checks.shape("mask", mask, (*batch, T), f"(*batch, T) of `x`, which has shape {tuple(x.shape)}")
    return Recurrent(x, weight_ih, weight_hh, *biases, states["h0"], mask, checks.flag("reverse", reverse))


def _check_weights(gates: str, x: Array, weight_ih: Array, weight_hh: Array) -> int:
    """Check the shapes of x and the weights; return H."""
    shapes = checks.shapes(x=x, weight_ih=weight_ih, weight_hh=weight_hh)
    count = len(gates)
    rows = f"{count}H" if count > 1 else "H"
    if x.ndim < 2 or weight_ih.ndim != 2 or weight_hh.ndim != 2:
        raise ValueError(
            f"`x`, `weight_ih` and `weight_hh` have {x.ndim}, {weight_ih.ndim} and {weight_hh.ndim} axes, expected "
            f"(*batch, T, I), ({rows}, I) and ({rows}, H). {shapes}"
        )
    if weight_ih.shape[0] % count:
        raise ValueError(
            f"`weight_ih` has {weight_ih.shape[0]} rows, which {count} does not divide: expected ({rows}, I), H rows "
            f"for each of {', '.join(gates)}. {shapes}"
        )
    if x.shape[-1] != weight_ih.shape[1]:
        raise ValueError(
            f"`x` has {x.shape[-1]} features but `weight_ih` has {weight_ih.shape[1]} columns; they must match. "
            f"A weight that is stored as (I, {rows}) is passed as weight_ih.T. {shapes}"
        )
    hidden = int(weight_ih.shape[0]) // count
    because = f"({rows}, H) with H = {hidden}, as `weight_ih` has {weight_ih.shape[0]} rows"
    checks.shape("weight_hh", weight_hh, (count * hidden, hidden), because)
    return hidden


def cotangents(dout: Any, results: type, given: Recurrent) -> list[Array]:
    """The cotangents of out (N, T, H) and of the states (N, H) in the accumulator's dtype; 0 for None."""
    names = getattr(results, "_fields", ())
    if not isinstance(dout, tuple | list) or len(dout) != len(names):
        raise TypeError(
            f"`dout` is {checks.shown(dout)}, expected {results.__name__}({', '.join(names)}): the cotangent of each "
            "result, None for 0."
        )
    named = {f"dout.{name}": array for name, array in zip(names, dout, strict=True)}
    xp = checks.namespace(**named, x=given.x)
    found = []
    for name, array in named.items():
        shape = (*given.x.shape[:-1], given.hidden) if name == "dout.out" else (*given.batch, given.hidden)
        if array is None:
            array = xp.zeros(shape, dtype=given.x.dtype, device=device_of(given.x))
        checks.shape(name, array, shape, "the shape of that result")
        checks.floating(**{name: array}, x=given.x)
        found.append(_sequences(given, array))
    return [where_step(given, found[0]), *found[1:]]


def input_products(given: Recurrent, *biases: Array | None) -> Array:
    """x W_ih^T + all `biases` that are not None, for every step: (N, T, G H)."""
    terms = [wide(given, bias) for bias in biases if bias is not None]
    bias = terms[0] + terms[1] if len(terms) > 1 else terms[0] if terms else None
    return _over_time(given, multiply_rows(_rows(_inputs(given)), wide(given, given.weight_ih), bias))


def first_state(given: Recurrent, state: Array | None) -> Array:
    """The initial state, (N, H); 0 for None."""
    xp = namespace_of(given.x)
    shape = (given.sequences, given.hidden)
    if state is None:
        return xp.zeros(shape, dtype=accumulator_dtype(xp, given.x.dtype), device=device_of(given.x))
    return xp.reshape(wide(given, state), shape)


def after_step(given: Recurrent, t: int, new: Array, old: Array) -> Array:
    """`new` where position t is a step, else `old`; both (N, H)."""
    mask = steps_mask(given)
    return new if mask is None else namespace_of(new).where(mask[:, t, None], new, old)


def over_time(by_step: dict[int, Array], empty: Array) -> Any:
    """Stack (N, S) of each position to (N, T, S), a view of (T, N, S); return `empty` for T = 0."""
    xp = namespace_of(empty)
    return _swapped(xp.stack([by_step[t] for t in range(len(by_step))], axis=0)) if by_step else empty


def before_steps(given: Recurrent, states: Array, state: Array | None) -> Any:
    """The states before each step, from those after each step and the initial one: (N, T, H)."""
    xp, first = namespace_of(states), first_state(given, state)[None, :, :]  # (1, N, H)
    if given.reverse:
        return _swapped(xp.concat([_swapped(states), first], axis=0)[1:, :, :])
    return _swapped(xp.concat([first, _swapped(states)], axis=0)[: states.shape[1], :, :])


def last_step(given: Recurrent, states: Array, state: Array) -> Any:
    """The state after the last step, from those after each step and the initial one: (N, H)."""
    steps = given.steps
    return states[:, steps[-1], :] if steps else state


def where_step(given: Recurrent, values: Array) -> Array:
    """(N, T, S) with 0 at masked positions."""
    mask = steps_mask(given)
    return values if mask is None else namespace_of(values).where(mask[:, :, None], values, 0.0)


def steps_mask(given: Recurrent) -> Any:
    """The mask as (N, T), or None."""
    if given.mask is None:
        return None
    return namespace_of(given.mask).reshape(given.mask, (given.sequences, given.x.shape[-2]))


def as_output(given: Recurrent, states: Array) -> Any:
    """The states (N, T, H) as the output (*batch, T, H), 0 at masked positions."""
    xp = namespace_of(states)
    out = xp.astype(where_step(given, states), given.x.dtype, copy=False)
    return read_only(xp.reshape(out, (*given.batch, *out.shape[1:])))


def as_state(given: Recurrent, state: Array) -> Any:
    """A state (N, H), or its gradient, as (*batch, H)."""
    xp = namespace_of(state)
    return xp.reshape(xp.astype(state, given.x.dtype), (*given.batch, given.hidden))


def gradients(
    given: Recurrent, dinput: Array, dhidden: Array, before: Array
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """The gradients of x, both weights and both biases, for all steps at once.

    `dinput` and `dhidden` (N, T, G H) are those of x W_ih^T + b_ih and h W_hh^T + b_hh; `before` (N, T, H) is h.
    """
    xp = namespace_of(dinput)
    dtype, is_same = given.x.dtype, dinput is dhidden
    dinput, dhidden = _rows(dinput), _rows(dhidden)  # (T N, G H)
    dx = where_step(given, _over_time(given, multiply_rows(dinput, wide(given, given.weight_ih).mT)))  # (N, T, I)
    dx = xp.reshape(xp.astype(dx, dtype, copy=False), given.x.shape)
    dweight_ih = xp.astype(multiply_columns(dinput, _rows(_inputs(given))), dtype, copy=False)  # (G H, I)
    dweight_hh = xp.astype(multiply_columns(dhidden, _rows(before)), dtype, copy=False)  # (G H, H)
    dbias_ih = None if given.bias_ih is None else xp.astype(xp.sum(dinput, axis=0), dtype, copy=False)
    if given.bias_hh is None:
        return dx, dweight_ih, dweight_hh, dbias_ih, None
    if is_same and dbias_ih is not None:
        return dx, dweight_ih, dweight_hh, dbias_ih, xp.asarray(dbias_ih, copy=True)
    return dx, dweight_ih, dweight_hh, dbias_ih, xp.astype(xp.sum(dhidden, axis=0), dtype, copy=False)


def weight_gradient(given: Recurrent, dsums: Array, states: Array) -> Array:
    """The gradient (R, S) of a weight, of the gradients (N, T, R) of its products with states (N, T, S)."""
    return namespace_of(dsums).astype(multiply_columns(_rows(dsums), _rows(states)), given.x.dtype, copy=False)


def total(array: Array) -> Any:
    """The sum (S,) over sequences and steps of (N, T, S), in an order that no layout changes."""
    return namespace_of(array).sum(_rows(array), axis=0)


def wide(given: Recurrent, array: Array) -> Array:
    """`array` in the accumulator's dtype."""
    xp = namespace_of(array)
    return xp.astype(array, accumulator_dtype(xp, given.x.dtype), copy=False)


def blocks(gates: Array, count: int) -> list[Array]:
    """(..., G H) -> one (..., H) for each of the `count` gates."""
    size = gates.shape[-1] // count
    return [gates[..., n * size : (n + 1) * size] for n in range(count)]


def _inputs(given: Recurrent) -> Array:
    """x as (N, T, I), 0 at masked positions, which may hold NaN."""
    return where_step(given, _sequences(given, given.x))


def _sequences(given: Recurrent, array: Array) -> Array:
    """(*batch, ...) -> (N, ...) in the accumulator's dtype."""
    xp = namespace_of(array)
    return xp.reshape(wide(given, array), (given.sequences, *array.shape[len(given.batch) :]))


def _rows(array: Array) -> Array:
    """(N, T, S) -> (T N, S), for one large matrix product."""
    return namespace_of(array).reshape(_swapped(array), (array.shape[0] * array.shape[1], array.shape[2]))


def _over_time(given: Recurrent, rows: Array) -> Any:
    """(T N, S) -> (N, T, S), the inverse of `_rows`."""
    return _swapped(namespace_of(rows).reshape(rows, (given.x.shape[-2], given.sequences, rows.shape[1])))


def _swapped(array: Array) -> Array:
    """(N, T, S) as (T, N, S), and vice versa: in memory, the numbers of a step are together."""
    return namespace_of(array).permute_dims(array, (1, 0, 2))

"""Exercises that grade themselves, from softmax to a whole GPT block: `attnarray learn` in a terminal, or here.

`check(name, function)` grades a function that was written in a notebook; `names()` lists the exercises, `show(name)` is
the text and the signature, `starting_code(name)` the cell to begin with, `hint(name, step)` one of three hints and
`solution(name)` the solved file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnarray.console import UsageError

__all__ = ["check", "hint", "names", "show", "solution", "starting_code"]


class Text(str):
    """A text that a notebook shows as it is, with its lines."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def check(name: str, function: Callable[..., Any], *, seed: int = 0) -> Any:
    """Grade a function; the report is true if it passed, and says what is wrong otherwise.

    A backward is compared with central differences by `attnarray.gradcheck`, at random shapes. Wrong results are
    compared with those of typical mistakes. The function runs in this process, without a time limit, and no progress is
    kept: files that `attnarray learn check` grades have both.

    Parameters
    ----------
    name : str
        The name of an exercise.
    function : callable
        With the signature that `show(name)` has.
    seed : int
        For the random inputs.

    Raises
    ------
    ValueError
        If there is no exercise of that name.
    TypeError
        If `function` is not callable.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> def softmax_bwd(dout, p):
    ...     return p * dout
    >>> aa.learn.check("softmax_bwd", softmax_bwd)
    softmax_bwd: dx is wrong
    <BLANKLINE>
      dx  WRONG  [...] of (...) is ..., expected ...
    <BLANKLINE>
    It looks like this mistake:
      dx: delta is missing: dx = p * dout treats each weight as if it depended on its own score alone.
    """
    from attnarray.learn.grading import grade

    exercise = _load(name)
    if not callable(function):
        raise TypeError(f"`function` is of {type(function)}, expected the function that you wrote.")
    return grade(exercise, function, seed)


def names() -> tuple[str, ...]:
    """The names of all exercises, in order."""
    from attnarray.learn.course import NAMES

    return NAMES


def show(name: str) -> Text:
    """The story, the formula and the signature of an exercise."""
    exercise = _load(name)
    return Text(f"{exercise.text()}\n\n{exercise.signature().rstrip()}")


def starting_code(name: str) -> Text:
    """The code to begin with, as `attnarray learn start` writes it to a file."""
    return Text(_load(name).starting_file())


def hint(name: str, step: int = 1) -> Text:
    """One of three hints: 1 is a direction, 3 almost the solution."""
    hints = _load(name).hints
    if step not in range(1, len(hints) + 1):
        raise ValueError(f"`step` is {step}, expected 1 to {len(hints)}.")
    return Text(hints[step - 1])


def solution(name: str) -> Text:
    """The solved file of an exercise."""
    return Text(_load(name).solution_file())


def _load(name: str) -> Any:
    from attnarray.learn.course import NAMES, load
    from attnarray.learn.exercise import checked_name

    try:
        return load(checked_name(name, NAMES))
    except UsageError as error:
        raise ValueError(str(error).removeprefix("attnarray learn: ")) from None

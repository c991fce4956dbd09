"""Calls of a learner's function: at random shapes, with copies of the arguments, and a message for each problem."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import re
import traceback
from typing import Any, NamedTuple

import numpy as np

from attnarray.learn.exercise import Exercise, Function, sizes

REGIMES = 3  # draws of one grading; an exercise may have large scores or masked rows in one of them
MOST_PRINTED = 2000  # characters kept of what a function prints


class Case(NamedTuple):
    """One call: `inputs` of the forward, if there is one, `arguments` of the learner's function, and the right results.

    `equal` cases have equal sizes. They are for recognizing mistakes alone: with distinct sizes, a transposed array is
    an error of shapes.
    """

    inputs: dict[str, Any]
    arguments: dict[str, Any]
    expected: tuple[np.ndarray, ...]
    sizes: dict[str, int]
    equal: bool


class Outcome(NamedTuple):
    """What a call returned, as arrays, or the problem: its kind, and a sentence."""

    results: tuple[np.ndarray, ...]
    problem: str = ""
    says: str = ""
    where: str = ""


class Printed(io.StringIO):
    """Keeps the beginning of what is printed."""

    def write(self, text: str) -> int:
        if self.tell() < MOST_PRINTED:
            super().write(text[: MOST_PRINTED - self.tell()])
        return len(text)


def draw(exercise: Exercise, seed: int, regime: int, equal: bool = False) -> Case:
    """A random call and its right results."""
    rng = np.random.default_rng((seed, regime, equal))
    size = sizes(rng, exercise.axes, equal)
    inputs = exercise.draw(rng, regime, **size)
    arguments = inputs
    if exercise.forward is not None:
        out, saved = exercise.forward(**inputs)
        arguments = {"dout": rng.standard_normal(out.shape), **saved}
    outcome = call(exercise, exercise.solution, arguments)
    if outcome.problem:
        raise AssertionError(f"the solution of {exercise.name} fails: {outcome.says}")
    return Case(inputs, arguments, outcome.results, size, equal)


def draw_all(exercise: Exercise, seed: int) -> list[Case]:
    """The calls of one grading, and at the end one with equal sizes."""
    return [*(draw(exercise, seed, regime) for regime in range(REGIMES)), draw(exercise, seed, 0, equal=True)]


def call(exercise: Exercise, function: Function, arguments: dict[str, Any]) -> Outcome:
    """Call the function, with copies of the arguments."""
    given = copy.deepcopy(arguments)
    for name in exercise.streams:
        given[name] = iter(given[name])
    with np.errstate(all="ignore"):  # wrong formulas divide by 0; what they return is judged
        try:
            returned = function(**given)
        except NotImplementedError as error:
            says = "Write the function in place of the line that raises NotImplementedError."
            return Outcome((), "unfinished", says, _where(error))
        except SystemExit:
            return Outcome((), "exit", "The function ends the program (sys.exit or quit). Return the result instead.")
        except RecursionError as error:
            return Outcome((), "error", "The function calls itself without end (RecursionError).", _where(error))
        except MemoryError as error:
            return Outcome((), "error", "The function asks for more memory than there is (MemoryError).", _where(error))
        except Exception as error:
            return Outcome((), "error", _sentence(exercise, function, given, error), _where(error))
    for name, before in arguments.items():
        if name not in exercise.streams + exercise.writes and not _same(given[name], before):
            return Outcome(
                (), "mutation", f"The function changes its argument `{name}` in place. Work on a copy: {name}.copy()."
            )
    if exercise.writes:
        if returned is not None:
            return Outcome(
                (), "type", f"It returned {_shown(returned)}: fill {_listed(exercise.writes)}, return nothing."
            )
        returned = tuple(given[name] for name in exercise.writes)
    return _as_arrays(exercise, returned)


def _as_arrays(exercise: Exercise, returned: Any) -> Outcome:
    labels = exercise.labels
    if len(labels) == 1 and not isinstance(returned, tuple):
        returned = (returned,)
    if returned is None or (len(labels) == 1 and returned[0] is None):
        return Outcome((), "type", f"It returned None. Is a `return` missing? Expected: {_listed(labels)}.")
    if not isinstance(returned, tuple | list) or len(returned) != len(labels):
        expected = f"expected {len(labels)}, in this order" if len(labels) > 1 else "expected one"
        count = f"{len(returned)} values" if isinstance(returned, tuple | list) else _shown(returned)
        return Outcome((), "type", f"It returned {count}, {expected}: {_listed(labels)}.")
    for label, value in zip(labels, returned, strict=True):
        if not isinstance(value, np.ndarray | np.generic | float | int):
            return Outcome((), "type", f"`{label}` is {_shown(value)}, expected a NumPy array.")
        if np.asarray(value).dtype.kind not in "fbiu":
            return Outcome((), "type", f"`{label}` has dtype {np.asarray(value).dtype}, expected real numbers.")
    return Outcome(tuple(np.array(value) for value in returned))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _shown(value: Any) -> str:
    kind = "array" if isinstance(value, np.ndarray) else type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")


def _sentence(exercise: Exercise, function: Function, given: dict[str, Any], error: Exception) -> str:
    try:
        inspect.signature(function).bind(**given)
    except (TypeError, ValueError):
        return f"It cannot be called as the exercise does: {error}. Keep the signature: {exercise.signature().strip()}"
    shapes = ", ".join(f"{name} {value.shape}" for name, value in given.items() if isinstance(value, np.ndarray))
    said = _plainer(str(error).strip()) or "without a message"
    if isinstance(error, EOFError):
        said = "input() has nobody to ask here"
    end = "" if said.endswith(("?", ".")) else "."
    once = f" {_listed(exercise.streams)} can be read only once." if exercise.streams else ""
    return f"It raised {type(error).__name__}: {said}{end} It was called with {shapes or 'no array'}.{once}"


def _plainer(said: str) -> str:
    """NumPy's messages about shapes, with what is mostly the reason."""
    sizes = re.search(r"matmul: .*\(size (\d+) is different from (\d+)\)", said)
    if sizes:
        return (
            f"the inner sizes of a matrix product are {sizes[2]} and {sizes[1]}, and must be equal: is an array to be "
            "transposed, or are two to be swapped?"
        )
    if "could not be broadcast together" in said:
        return f"{said}: is keepdims=True missing in a sum, or an axis [:, None]?"
    return said


def _where(error: BaseException) -> str:
    """The learner's line that raised, as `line 12: dk = dscores @ q`."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "attnarray/learn/" not in frame.filename.replace("\\", "/")
    ]
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    return f"line {own[-1].lineno}: {own[-1].line}" if own and own[-1].line else ""


@contextlib.contextmanager
def quiet() -> Any:
    """Keep what is printed within the block; it yields a `Printed`."""
    printed = Printed()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield printed

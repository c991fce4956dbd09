"""One exercise: its text, its starting file, its solution and the mistakes that are known for it."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from attnarray.console import UsageError

Kind: TypeAlias = Literal["forward", "backward", "mask", "kernel", "bug"]
Function: TypeAlias = Callable[..., Any]


class Mistake(NamedTuple):
    """A typical mistake: replacements in the source of the solution, and the sentences that explain it."""

    name: str
    says: str
    edits: Mapping[str, str]


class Exercise(NamedTuple):
    """An exercise, in the module of its solution.

    The docstring of that module has the title, a story of two sentences, the formula (indented), and what is asked.

    Parameters
    ----------
    solution : callable
        The function to write; its signature and docstring are given to the learner.
    kind : str
        What is to be written; "bug": the starting file has bugs to find.
    axes : str
        Letters of axes. `draw` is called with a size for each: they are pairwise distinct, or all equal.
    draw : callable
        `draw(rng, regime, **sizes)` returns the arguments of `forward`, or of `solution` where there is no forward. The
        regimes 0, 1, 2, ... are those of one grading; some exercises have large scores or a fully masked row in one.
    results : tuple of str
        What the solution returns; for a backward, the inputs of `forward` that the gradients belong to.
    forward : callable, optional
        Returns the output and what the solution is given beside `dout`, by name.
    hints : tuple of str
        Three steps, from a direction to almost the solution.
    mistakes : tuple of Mistake
        They change the solution into what learners typically write.
    given : tuple of callable
        Functions of the same module that stand in the starting file.
    writes : tuple of str
        Arguments that the solution fills, as kernels do, instead of returning something.
    streams : tuple of str
        Arguments that are iterators: they can be read once.
    planted : tuple of str
        For "find the bug": the names of the mistakes in the starting file.
    """

    solution: Function
    kind: Kind
    axes: str
    draw: Callable[..., dict[str, Any]]
    results: tuple[str, ...]
    hints: tuple[str, str, str]
    mistakes: tuple[Mistake, ...]
    forward: Function | None = None
    given: tuple[Function, ...] = ()
    writes: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    planted: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.solution.__name__

    @property
    def title(self) -> str:
        return self._paragraphs()[0].rstrip(".")

    @property
    def story(self) -> str:
        """Two sentences."""
        return self._paragraphs()[1].replace("\n", " ")

    @property
    def formula(self) -> str:
        return "\n\n".join(textwrap.dedent(text) for text in self._paragraphs() if text.startswith("    "))

    @property
    def labels(self) -> tuple[str, ...]:
        """The results as learners call them: `dx` is the gradient of `x`."""
        return tuple(f"d{name}" for name in self.results) if self.forward else self.results

    def text(self) -> str:
        """The docstring of the exercise, as it stands in the file."""
        return inspect.cleandoc(sys.modules[self.solution.__module__].__doc__ or "")

    def _paragraphs(self) -> list[str]:
        return self.text().split("\n\n")

    def signature(self) -> str:
        """`def f(x: np.ndarray) -> np.ndarray:` without docstring and body."""
        return _head(inspect.getsource(self.solution), docstring=False)

    def starting_file(self, command: str = "attnarray learn") -> str:
        """What `start` writes: the text, what is given, and a function without a body, or with a bug."""
        if self.kind == "bug":
            code = self.mistaken_source([mistake for mistake in self.mistakes if mistake.name in self.planted])
        else:
            code = _head(inspect.getsource(self.solution), docstring=True)
            code += f'    raise NotImplementedError("write {self.name} here")\n'
        return self._file(code, f"Check it:  {command} check {self.name}\nA hint:    {command} hint {self.name}\n")

    def solution_file(self) -> str:
        """The same file, solved."""
        return self._file(inspect.getsource(self.solution), "")

    def _file(self, code: str, ending: str) -> str:
        text = f"{self.text()}\n\n{ending}" if ending else f"{self.text()}\n"
        given = [inspect.getsource(function) for function in self.given]
        code = "\n\n".join([*given, code])
        first = ["from collections.abc import Iterator", ""] if "Iterator[" in code else []
        return "\n".join(['"""' + text + '"""', "", *first, "import numpy as np", "", "", code])

    def mistaken_source(self, mistakes: list[Mistake]) -> str:
        """The source of the solution with mistakes in it.

        Raises
        ------
        ValueError
            If a text that is to be replaced does not stand in the code exactly once.
        """
        source = inspect.getsource(self.solution)
        head = _head(source, docstring=True)
        body = source[len(head) :]
        for mistake in mistakes:
            for old, new in mistake.edits.items():
                if body.count(old) != 1:
                    raise ValueError(f"{self.name}, {mistake.name}: {old!r} stands {body.count(old)} times in:\n{body}")
                body = body.replace(old, new)
        return head + body

    def mistaken(self, *mistakes: Mistake) -> Function:
        """The solution with mistakes in it, as a function."""
        known = tuple(mistake.name for mistake in mistakes)
        if (self.name, known) not in _MISTAKEN:
            source = f"from __future__ import annotations\n{self.mistaken_source(list(mistakes))}"
            namespace = dict(vars(sys.modules[self.solution.__module__]))
            exec(compile(source, f"<{self.name}>", "exec"), namespace)
            _MISTAKEN[self.name, known] = namespace[self.name]
        return _MISTAKEN[self.name, known]


_MISTAKEN: dict[tuple[str, tuple[str, ...]], Function] = {}


def _head(source: str, docstring: bool) -> str:
    """The lines of a function up to its signature, or to its docstring."""
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    first = node.body[0]
    last = (first.end_lineno or first.lineno) if docstring else first.lineno - 1
    return "".join(source.splitlines(keepends=True)[:last])


def checked_name(name: str, names: tuple[str, ...]) -> str:
    """The name of an exercise, also given as a file.

    Raises
    ------
    UsageError
        If there is none of that name; the message has the most similar ones.
    """
    stem = re.split(r"[\\/]", name)[-1].removesuffix(".py")
    if stem in names:
        return stem
    import difflib

    similar = difflib.get_close_matches(stem, names, 3, 0.5)
    hint = f"Did you mean {' or '.join(similar)}?" if similar else "See attnarray learn for all of them."
    raise UsageError(f"attnarray learn: there is no exercise {name!r}. {hint}")


def sizes(rng: np.random.Generator, axes: str, equal: bool = False) -> dict[str, int]:
    """A small size for each axis: pairwise distinct ones, as equal sizes hide transposed arrays, or all equal."""
    if equal:
        return dict.fromkeys(axes, int(rng.integers(2, 5)))
    return {axis: int(size) for axis, size in zip(axes, rng.permutation(range(2, 3 + max(4, len(axes)))), strict=False)}

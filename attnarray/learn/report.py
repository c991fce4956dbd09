"""The result of grading one function: as lines for a terminal, as text for a notebook, as JSON for an autograder."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, TypeAlias

from attnarray.console import BAD, FAINT, GOOD
from attnarray.tables import Cell, Line

Status: TypeAlias = Literal["passed", "wrong", "error", "unfinished", "timeout", "unreadable"]
FORMAT = 1  # of the JSON; it changes when a field changes its meaning


class ResultReport(NamedTuple):
    """One gradient, or another result: its largest error, and the entry where it is; or its shape, if that is wrong."""

    name: str
    ok: bool
    error: float | None
    entry: tuple[int, ...] | None = None
    given: str = ""
    expected: str = ""
    shape: tuple[int, ...] = ()


class Recognized(NamedTuple):
    """A mistake, and the results that it explains."""

    name: str
    says: str
    results: tuple[str, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """The grade of a function; true if it passed."""

    exercise: str
    status: Status
    says: str = ""
    where: str = ""
    results: tuple[ResultReport, ...] = ()
    mistakes: tuple[Recognized, ...] = ()
    symptoms: tuple[str, ...] = ()
    printed: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def score(self) -> float:
        """The share of right results."""
        return sum(result.ok for result in self.results) / len(self.results) if self.results else 0.0

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return "\n".join("".join(cell.text for cell in line).rstrip() for line in self.lines())

    def lines(self) -> list[Line]:
        """What a learner reads."""
        style = GOOD if self.passed else BAD
        found: list[Line] = [[Cell(f"{self.exercise}: "), Cell("passed" if self.passed else self._headline(), style)]]
        if self.results:
            found += [[], *_table(self.results)]
        if self.says:
            found += [[], [Cell(self.says)]]
        if self.where:
            found += [[Cell(f"  at {self.where}", FAINT)]]
        if self.mistakes:
            several = "these mistakes" if len(self.mistakes) > 1 else "this mistake"
            found += [[], [Cell(f"It looks like {several}:", "bold")]]
            found += [[Cell(f"  {', '.join(m.results)}: " if m.results else "  "), Cell(m.says)] for m in self.mistakes]
        found += [[Cell(f"  {sentence}")] for sentence in self.symptoms] and [
            [],
            *([Cell(sentence)] for sentence in self.symptoms),
        ]
        if self.printed:
            found += [
                [],
                [Cell("It printed:", FAINT)],
                *([Cell(f"  {line}")] for line in self.printed.splitlines()[:10]),
            ]
        return found

    def _headline(self) -> str:
        if self.status != "wrong":
            return {"unfinished": "not written yet", "timeout": "stopped", "unreadable": "cannot be run"}.get(
                self.status, "an error"
            )
        wrong = [result.name for result in self.results if not result.ok]
        return f"{' and '.join(wrong)} {'are' if len(wrong) > 1 else 'is'} wrong" if wrong else "wrong"

    def as_json(self) -> dict[str, Any]:
        """Numbers, texts and lists; see docs/learn/teachers.md."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in _names(self)}
        fields["results"] = [result._asdict() for result in self.results]
        fields["mistakes"] = [mistake._asdict() for mistake in self.mistakes]
        return {"format": FORMAT, **fields, "passed": self.passed, "score": self.score}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Report:
        """The report of `as_json`, also after JSON has made lists of its tuples."""
        known = {name: fields[name] for name in _names(cls)}
        known["results"] = tuple(
            ResultReport(**{**result, "entry": _tuple(result["entry"]), "shape": tuple(result["shape"])})
            for result in fields["results"]
        )
        known["mistakes"] = tuple(Recognized(m["name"], m["says"], tuple(m["results"])) for m in fields["mistakes"])
        known["symptoms"] = tuple(fields["symptoms"])
        return cls(**known)


def _names(report: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(report)]


def _tuple(entry: list[int] | None) -> tuple[int, ...] | None:
    return None if entry is None else tuple(entry)


def _table(results: tuple[ResultReport, ...]) -> list[Line]:
    width = max(len(result.name) for result in results)
    return [
        [
            Cell(f"  {result.name:<{width}}  "),
            Cell("ok", GOOD) if result.ok else Cell("WRONG", BAD),
            *_detail(result),
        ]
        for result in results
    ]


def _detail(result: ResultReport) -> Line:
    if result.ok:
        return [Cell(f"     error {result.error:.0e}", FAINT)] if result.error is not None else []
    if not result.given:
        return [Cell(f"  differs from central differences by {result.error:.0e} of its largest entry")]
    if result.entry is None:
        return [Cell(f"  its shape is {result.given}, expected {result.expected}")]
    entry = f"[{', '.join(map(str, result.entry))}] of {result.shape}" if result.entry else "it"
    return [Cell(f"  {entry} is {result.given}, expected {result.expected}")]

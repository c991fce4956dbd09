"""The pages about `attnarray learn` say what it does today."""

from __future__ import annotations

import re

from attnarray.learn.command import OPTIONS
from attnarray.learn.course import LECTURES, NAMES, load
from attnarray.learn.grading import grade
from tests.support.paths import ROOT

LEARNERS, TEACHERS = (
    (ROOT / "docs" / "learn" / page).read_text(encoding="utf-8") for page in ("index.md", "teachers.md")
)


def test_the_table_is_the_course() -> None:
    rows = re.findall(r"^\| (.*?) \| `(\w+)` \| (\w+) \| (.+) \|$", LEARNERS, re.MULTILINE)
    expected = []
    for n, (title, names) in enumerate(LECTURES.items(), 1):
        for name in names:
            lecture = f"{n}. {title}" if name == names[0] else ""
            expected.append((lecture, name, load(name).kind, load(name).title))
    assert rows == expected


def test_the_syllabus_is_the_course() -> None:
    sections = TEACHERS.split("\n### ")[1:7]
    for section, (title, names) in zip(sections, LECTURES.items(), strict=True):
        assert section.splitlines()[0][3:] == title
        practical = section.split("- Practical: ")[1].split("\n\n")[0]
        assert tuple(re.findall(r"`(\w+)`", practical)) == names


def test_the_report_is_printed_so() -> None:
    assert str(grade(load("softmax_bwd"), lambda dout, p: p * dout)) in LEARNERS
    starting_file = load("softmax_bwd").starting_file()
    assert starting_file[starting_file.index("def softmax_bwd") :] in LEARNERS
    assert load("softmax_bwd").signature() in LEARNERS


def test_the_fields_of_the_json_are_listed() -> None:
    fields = grade(load("softmax_bwd"), lambda dout, p: p * dout).as_json()
    for name in [*fields, *fields["results"][0], *fields["mistakes"][0]]:
        assert f"`{name}`" in TEACHERS


def test_options_and_counts() -> None:
    pages = LEARNERS + TEACHERS
    for option in ("json", "all", "exercise", "seed", "time_limit"):
        assert option in OPTIONS
        assert f"--{option.replace('_', '-')}" in pages
    assert len(NAMES) == 37
    assert "Thirty-seven exercises" in LEARNERS
    mistakes = sum(len(load(name).mistakes) for name in NAMES)
    known = re.search(r"more than (\d+) known mistakes", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert known is not None
    assert int(known[1]) < mistakes
    for page in ("README.md", "docs/index.md"):
        assert f"{len(NAMES)} exercises" in (ROOT / page).read_text(encoding="utf-8")

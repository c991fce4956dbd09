"""The pages that derive backward passes, docs/learn: they quote the library as it is, and have all their parts.

Their code runs, and its output is compared, in test_docs.py.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

import attnarray
from tests.support.paths import ROOT

INDEX = ROOT / "docs" / "learn" / "derivations.md"
PAGES = [INDEX.with_name(f"{name}.md") for name in re.findall(r"^\| \[.*?\]\((.*?)\.md\) \|", INDEX.read_text(), re.M)]
BLOCK = re.compile(r"^```py\n# (attnarray/.*?\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUOTES = [
    pytest.param(path, code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, (path, code) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1)
]


def contains(source: str, code: str) -> bool:
    """Whether the lines of `code` follow one another in `source`, all indented by the same amount."""
    lines = code.rstrip("\n").split("\n")
    every = source.split("\n")
    starts = [n for n, line in enumerate(every) if line.strip() == lines[0].strip()]
    return any(textwrap.dedent("\n".join(every[n : n + len(lines)])) == "\n".join(lines) for n in starts)


@pytest.mark.parametrize(("path", "code"), QUOTES)
def test_quoted_lines_are_the_librarys(path: str, code: str) -> None:
    """A line that is changed in the library is to be changed on the page, with what is said about it."""
    assert contains((ROOT / path).read_text(encoding="utf-8"), code), f"{path} has no such lines any more"


def test_a_changed_line_is_found() -> None:
    source = "def f(x):\n    y = x + 1\n    return y\n"
    assert contains(source, "y = x + 1\nreturn y\n")
    assert not contains(source, "y = x + 2\n")
    assert not contains(source, "y = x + 1\ny\n")
    assert not contains(source, "y = x + 1\n  return y\n")


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_has_all_parts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.match(r"# .*\n\n\*\*Question\.\*\* ", text)
    assert BLOCK.search(text), "no lines of the library"
    assert text.count("```py") == len(BLOCK.findall(text)) + text.count("```python"), "a quote without its file"
    assert re.search(r"^## If .* left out$", text, re.MULTILINE), "nothing is left out"
    assert re.search(r"^(The papers?|Papers? on .*): \w", text, re.MULTILINE), "no paper"
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert prose.count("$$") % 2 == 0
    for formula in re.findall(r"\$\$(.*?)\$\$", prose, re.DOTALL) + re.findall(
        r"(?<!\$)\$(?!\$)([^$]+)\$", prose.replace("$$", "")
    ):
        assert formula.count("{") == formula.count("}"), formula
        assert formula.count(r"\Bigl") == formula.count(r"\Bigr"), formula
        assert not re.search(r"\n[-+*>] ", formula), f"Markdown takes the second line for a list: {formula}"
    exercises, _, answers = text.partition("## Exercises\n")[2].partition("<details><summary>Answers</summary>\n")
    numbered = re.compile(r"^\d+\. ", re.MULTILINE)
    assert 4 <= len(numbered.findall(exercises)) == len(numbered.findall(answers.partition("</details>")[0]))


def test_named_exercises_exist() -> None:
    named = {
        name
        for line in INDEX.read_text(encoding="utf-8").split("\n")
        if "](" in line
        for name in re.findall(r"`(\w+)`", line)
    }
    assert len(named) > 15
    assert named <= set(attnarray.learn.names())


def test_all_pages_are_listed() -> None:
    others = {"index.md", "teachers.md", INDEX.name}
    derived = {
        page.name for page in INDEX.parent.glob("*.md") if "**Question.**" in page.read_text(encoding="utf-8")
    } - others
    assert derived == {page.name for page in PAGES}
    assert len(PAGES) == 32
    listed = INDEX.read_text(encoding="utf-8").partition("{toctree}")[2]
    assert re.findall(r"^([\w-]+)$", listed, re.MULTILINE) == [page.stem for page in PAGES]

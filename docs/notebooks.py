"""The pages of docs/learn and the exercises as notebooks: `python docs/notebooks.py FOLDER`, and with the site.

A page becomes cells of text, cells of its Python blocks, and what they print; the exercises of each lecture become a
notebook with a cell to write in and one that grades it. Format 4.5 of Jupyter's notebooks, which is JSON.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from attnarray import learn
from attnarray.learn.course import LECTURES

LEARN = Path(__file__).parent / "learn"
SITE = "https://attnarray.github.io/attnarray"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\s*^```output\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([\w./-]+)\.md(#[\w-]+)?\)")
INSTALL = "%pip install --quiet attnarray"  # also in a browser, where the site has the wheel


def pages() -> list[Path]:
    """The pages that derive something, in alphabetical order."""
    return [path for path in sorted(LEARN.glob("*.md")) if "\n**Question.**" in path.read_text(encoding="utf-8")]


def notebooks() -> dict[str, dict[str, Any]]:
    """File name -> notebook."""
    found = {f"{path.stem}.ipynb": page_notebook(path.read_text(encoding="utf-8")) for path in pages()}
    for number, (title, names) in enumerate(LECTURES.items(), start=1):
        found[f"lecture-{number}.ipynb"] = lecture_notebook(f"{number}. {title}", names)
    return found


def page_notebook(markdown: str) -> dict[str, Any]:
    heading, _, rest = markdown.partition("\n")
    cells, end = [text(heading), code(INSTALL)], 0
    for block in BLOCK.finditer(rest):
        cells += [text(rest[end : block.start()]), code(block[1], block[2])]
        end = block.end()
    return notebook([*cells, text(rest[end:])])


def lecture_notebook(title: str, names: tuple[str, ...]) -> dict[str, Any]:
    words = (
        "Write each function, and run the cell below it: it says whether the result is right, and if not, which "
        "mistake it looks like."
    )
    cells = [text(f"# {title}\n\n{words}"), code(INSTALL), code("import attnarray as aa")]
    for name in names:
        begun = str(learn.starting_code(name))
        module = ast.parse(begun)
        story = (ast.get_docstring(module) or "").partition("\nCheck it:")[0]
        below = "\n".join(begun.split("\n")[module.body[0].end_lineno :])
        cells += [
            text(f"## `{name}`\n\n{story}\n\nHints: `aa.learn.hint({name!r}, 1)`, up to 3."),
            code(below),
            code(f"aa.learn.check({name!r}, {name})"),
        ]
    return notebook(cells)


def absolute_link(match: re.Match[str]) -> str:
    """Pages that are notebooks, too, are beside one another; all others are on the site."""
    page, anchor = match[1], match[2] or ""
    if "/" not in page and (LEARN / f"{page}.md") in pages():
        return f"]({page}.ipynb)"
    return f"]({SITE}/{posixpath.normpath(posixpath.join('learn', page))}.html{anchor})"


def notebook(cells: list[dict[str, Any]]) -> dict[str, Any]:
    kept = [cell for cell in cells if cell["source"]]
    for number, cell in enumerate(kept):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": kept, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def text(markdown: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": LINK.sub(absolute_link, markdown).strip()}


def code(source: str, printed: str | None = None) -> dict[str, Any]:
    outputs = [] if printed is None else [{"output_type": "stream", "name": "stdout", "text": printed}]
    return {
        "cell_type": "code", "execution_count": None, "metadata": {}, "outputs": outputs, "source": source.strip()
    }  # fmt: skip


def write(folder: Path) -> None:
    """Write all notebooks into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in notebooks().items():
        (folder / name).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

"""Runs the examples of the documentation: docstrings, and the Python blocks of the Markdown files."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import attnarray
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
INTERNAL = {"demo", "bench", "kernels"}
DOCTEST_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples may write files and pictures: in a temporary folder, with no window."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")


def _docstring_examples() -> list[doctest.DocTest]:
    """Read from the sources, so that a module that cannot be imported fails only its own examples."""
    parser, found = doctest.DocTestParser(), []
    for path in sorted((ROOT / "attnarray").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "attnarray").with_suffix("").parts)
        for name, docstring in _docstrings(ast.parse(path.read_text(encoding="utf-8")), module):
            test = parser.get_doctest(docstring.value, {"__name__": "__main__"}, name, str(path), docstring.lineno - 1)
            if test.examples:
                found.append(test)
    return found


def _docstrings(node: ast.AST, name: str) -> list[tuple[str, ast.Constant]]:
    found = [(name, node.body[0].value)] if ast.get_docstring(node) is not None else []
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            found += _docstrings(child, f"{name}.{child.name}")
    return found


EXAMPLES = _docstring_examples()


def _param(example: doctest.DocTest) -> Any:
    """Those of Dask arrays are run by `make test-distributed`, those of the bridges by `make test-peers`."""
    path = Path(example.filename).as_posix()
    marks = [pytest.mark.distributed] if "/distributed/dask/" in path else []
    marks += [pytest.mark.peers] if "/bridges/" in path else []
    return pytest.param(example, id=example.name, marks=marks)


@pytest.mark.parametrize("example", [_param(example) for example in EXAMPLES])
def test_docstring_example(example: doctest.DocTest) -> None:
    # An example starts with an empty namespace, as when a reader pastes it into a new interpreter; the examples of
    # internal modules have the names of their module.
    module = ".".join(Path(example.filename).relative_to(ROOT).with_suffix("").parts)
    if module.split(".")[1] == "bridges":
        needed = {"jax": ["jax"], "onnx": ["onnx"], "transformers": ["torch", "transformers"]}
        for package in needed.get(module.split(".")[2].split("_")[0], ["torch"]):
            pytest.importorskip(package)
    if module.split(".")[1] in INTERNAL:
        example.globs.update(vars(importlib.import_module(module)))
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=DOCTEST_OPTIONS)
    failed, _ = runner.run(example, out=report.write)
    assert not failed, report.getvalue()


class Block(NamedTuple):
    """A fenced block; `line` is that of its opening fence, `after` the text between it and the block before."""

    language: str
    code: str
    line: int
    after: str


def _blocks(markdown: str) -> list[Block]:
    found, end = [], 0
    for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", markdown, re.MULTILINE | re.DOTALL):
        line = markdown.count("\n", 0, match.start()) + 1
        found.append(Block(match[1], match[2], line, markdown[end : match.start()]))
        end = match.end()
    return found


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_page(page: Path) -> None:
    """The ```python blocks of a page run in one namespace, and print what the ```text or ```output below them says."""
    blocks = _blocks(page.read_text(encoding="utf-8"))
    namespace = {"__name__": "__main__"}
    for block, following in itertools.pairwise([*blocks, None]):
        if block.language != "python":
            continue
        printed = _run(block, page, namespace)
        if following is not None and following.language in ("text", "output") and not following.after.strip():
            where = f"{page.relative_to(ROOT)}:{block.line}"
            assert printed.rstrip("\n") == following.code.rstrip("\n"), f"{where} prints something else"


def _run(block: Block, page: Path, namespace: dict[str, object]) -> str:
    printed = io.StringIO()
    if block.code.lstrip().startswith(">>>"):
        example = doctest.DocTestParser().get_doctest(block.code, namespace, page.name, str(page), block.line)
        failed, _ = doctest.DocTestRunner(optionflags=DOCTEST_OPTIONS).run(
            example, out=printed.write, clear_globs=False
        )
        assert not failed, printed.getvalue()
        namespace.update(example.globs)
        return ""
    with contextlib.redirect_stdout(printed):
        # The empty lines make the line numbers of a traceback those of the page.
        exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)
    return printed.getvalue()


PUBLIC = [*attnarray._MODULES, *attnarray.TRIPLES]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name: str) -> None:
    thing = getattr(attnarray, name)
    docstring = inspect.getdoc(thing)
    assert docstring, f"attnarray.{name} has no docstring"
    if not inspect.ismodule(thing):
        assert re.search(r"^Examples\n-{8}\n(.*\n)*?>>> ", docstring, re.MULTILINE), (
            f"the docstring of attnarray.{name} has no section Examples with a line that starts with >>>"
        )


@pytest.mark.parametrize("name", [f + suffix for f in attnarray.TRIPLES for suffix in ("_fwd", "_bwd")])
def test_every_forward_and_backward_has_a_docstring(name: str) -> None:
    docstring = getattr(attnarray, name).__doc__
    assert docstring, f"attnarray.{name} has no docstring"
    if name.endswith("_bwd"):
        assert "=" in docstring, f"the docstring of attnarray.{name} does not state the gradient, as in dx = ..."

"""Each extra of pyproject.toml lists all packages that are imported by its part."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"babel": "Babel", "sklearn": "scikit-learn"}
OF_MODULES = {
    "attnarray.checkpoints": {"safetensors"},
    "attnarray.demo.dates": {"Babel"},
    "attnarray.distributed.checkpoint": {"safetensors"},
}  # imports of these parts
ALONE = "attnarray.checkpoints.replacing"  # a module of such a part that works without its packages
OPTIONAL = {"array_api_strict", "cupy", "keras", "torch"}  # used if installed


def imported(path: Path) -> set[str]:
    """The names of all modules that a file imports, of attnarray with the parts that are taken from it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "pytest.importorskip",
        ):
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def needed(paths: list[Path]) -> set[str]:
    """The distributions, other than attnarray's own dependencies, that files import."""
    modules = set().union(*(imported(path) for path in paths))
    modules = {module for module in modules if not f"{module}.".startswith(f"{ALONE}.")}
    beside = {path.stem for path in paths}
    roots = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - beside - {"attnarray"}
    found = {DISTRIBUTIONS.get(root, root) for root in roots}
    for part, distributions in OF_MODULES.items():
        found |= distributions if any(f"{module}.".startswith(f"{part}.") for module in modules) else set()
    return found - names(PROJECT["dependencies"]) - OPTIONAL


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", requirement)[0] for requirement in requirements}


FILES = {
    "checkpoints": ROOT / "attnarray" / "checkpoints",
    "examples": ROOT / "docs" / "examples",
    "demo": ROOT / "attnarray" / "demo",
    "distributed": ROOT / "attnarray" / "distributed",
    "interpret": ROOT / "attnarray" / "interpret",
    "bench": ROOT / "attnarray" / "bench",
}


OF_ONE_FILE = {
    "gguf": ROOT / "attnarray" / "checkpoints" / "gguf.py",
    "tokenizers": ROOT / "attnarray" / "models" / "tokenizer.py",
}


@pytest.mark.parametrize("extra", OF_ONE_FILE)
def test_an_extra_is_imported_by_one_file(extra: str) -> None:
    assert extra in imported(OF_ONE_FILE[extra])
    assert extra in names(PROJECT["optional-dependencies"][extra])


@pytest.mark.parametrize("extra", FILES)
def test_an_extra_lists_what_is_imported(extra: str) -> None:
    paths = sorted(set(FILES[extra].rglob("*.py")) - set(OF_ONE_FILE.values()))
    found = needed(paths)
    assert found  # else nothing was read
    assert found <= names(PROJECT["optional-dependencies"][extra])


def test_a_file_is_replaced_without_safetensors(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys
sys.modules["safetensors"] = None  # as if it were not installed
from {ALONE} import replacing
with replacing(pathlib.Path(sys.argv[1])) as new:
    new.write([b"new"])
    new.commit()
"""
    path = tmp_path / "file"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT)
    assert path.read_bytes() == b"new"


def test_an_example_says_what_it_needs() -> None:
    for path in sorted(FILES["examples"].glob("*.py")):
        documented = re.search(r"^Needs: ([^.]+)\.$", path.read_text(encoding="utf-8"), re.MULTILINE)
        if documented:  # else it is a part of others
            parts = [path.with_name(f"{name}.py") for name in imported(path)]
            assert needed([path, *(part for part in parts if part.exists())]) | {"attnarray"} == set(
                re.split(r",\s+", documented[1])
            ), path.name

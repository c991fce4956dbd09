"""The architecture: imports between modules, lazy imports, sizes, the order inside a file, the type stub."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import attnarray
from tests.support.paths import ROOT

PACKAGE = ROOT / "attnarray"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = MODULES + sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

# From top to bottom. A unit is a module or a package below attnarray; `attnarray` is the package with its public
# names. A unit may import units in rows below its own; `kernels` only `dispatch` may import.
LAYERS = """
    __main__
    cli
    check_report info_report demo bench learn
    check info
    console blas
    tables
    cases bridges
    attnarray
    interpret
    models distributed
    checkpoints
    layers
    attention
    ops
    gradient_check optim masks
    magnitude random tree triples dispatch hooks
    checks
    backend
    kernels
    memory_layout numpy_arrays
"""
ROW = {unit: row for row, line in enumerate(LAYERS.split("\n")) for unit in line.split()}
KERNELS_FOR_DISPATCH = {"attnarray.kernels", "attnarray.kernels.table"}

HEAVY = {
    "array_api_compat",
    "babel",
    "cupy",
    "dask",
    "distributed",
    "jax",
    "keras",
    "matplotlib",
    "mpi4py",
    "networkx",
    "numba",
    "onnx",
    "onnxruntime",
    "rich",
    "safetensors",
    "torch",
    "transformers",
}
FREE_TO_IMPORT = {"kernels", "demo", "bench", "bridges"}  # imported only when a command or a kernel runs

LONGEST_FILE = 480  # one concept is in one file
LONGEST_FUNCTION = 45
MOST_PARAMETERS = 10  # of a function of kernels; more are grouped in a NamedTuple


class Arrow(NamedTuple):
    """One import: of the module `target` at `line`; `lazy` inside a function or for type checkers only."""

    target: str
    line: int
    lazy: bool


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def unit_of(module: str) -> str:
    return module.removeprefix("attnarray.").split(".")[0]


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def names_of(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def arrows_of(path: Path) -> list[Arrow]:
    return list(_arrows(parse(path), path, lazy=False))


def _arrows(node: ast.AST, path: Path, lazy: bool) -> Iterator[Arrow]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Arrow(alias.name, child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _base(child, path)
            yield from (Arrow(_module_or_parent(base, alias.name), child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
            yield Arrow(_leading_text(child.args[0]), child.lineno, lazy)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        yield from _arrows(child, path, lazy or inside or typing_only)


def _base(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    parents = path.relative_to(ROOT).parts[: -node.level]
    return ".".join([*parents, *filter(None, [node.module])])


def _module_or_parent(base: str, name: str) -> str:
    """`from base import name` imports the module base.name if there is one, else base."""
    place = ROOT.joinpath(*base.split("."), name)
    return f"{base}.{name}" if place.with_suffix(".py").exists() or (place / "__init__.py").exists() else base


def _leading_text(argument: ast.expr) -> str:
    """The literal beginning of the name given to import_module, e.g. "attnarray.kernels" of an f-string."""
    first = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
    return str(first.value).rstrip(".") if isinstance(first, ast.Constant) else ""


@pytest.mark.parametrize("path", MODULES, ids=names_of(MODULES))
def test_imports_are_of_lower_layers(path: Path) -> None:
    unit = unit_of(module_name(path))
    assert unit in ROW, f"{unit} has no layer yet: add it to LAYERS in {Path(__file__).name}"
    wrong = []
    for arrow in arrows_of(path):
        target = unit_of(arrow.target)
        if arrow.target.split(".")[0] != "attnarray" or target == unit:
            continue
        allowed = ROW[unit] < ROW.get(target, -1)
        if target == "kernels":
            allowed = unit == "dispatch" and (arrow.lazy or arrow.target in KERNELS_FOR_DISPATCH)
        if path == PACKAGE / "__init__.py":
            allowed = arrow.lazy  # it imports every public name lazily
        if not allowed:
            wrong.append(f"{path.relative_to(ROOT)}:{arrow.line} imports {arrow.target}")
    assert not wrong, "\n".join(["Imports of a higher layer:", *wrong])


@pytest.mark.parametrize("path", MODULES, ids=names_of(MODULES))
def test_heavy_packages_are_imported_lazily(path: Path) -> None:
    if unit_of(module_name(path)) in FREE_TO_IMPORT:
        return
    eager = [arrow for arrow in arrows_of(path) if not arrow.lazy]
    heavy = [f"line {a.line}: {a.target}" for a in eager if a.target.split(".")[0] in HEAVY]
    assert not heavy, f"{path.relative_to(ROOT)} imports at module level, expected inside a function: {heavy}"
    own = {unit_of(module_name(path))}
    commands = [f"line {a.line}: {a.target}" for a in eager if unit_of(a.target) in {"demo", "bench", "learn"} - own]
    assert not commands, f"{path.relative_to(ROOT)} imports at module level, expected inside a function: {commands}"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-W", "error", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    "use", ["pass", "[getattr(attnarray, name) for name in dir(attnarray)]"], ids=["import", "all names"]
)
def test_importing_loads_numpy_and_nothing_heavy(use: str) -> None:
    loaded = run_python("-c", f"import sys, attnarray; {use}; print(*sys.modules)").stdout.split()
    assert "attnarray" in loaded
    assert not HEAVY.intersection(loaded)


def test_importing_loads_one_module_besides_numpy() -> None:
    # Importing must be cheap. Modules are counted, as a time depends on the load.
    code = "import sys, numpy; before = set(sys.modules); import attnarray; print(*(set(sys.modules) - before))"
    assert run_python("-c", code).stdout.split() == ["attnarray"]


TESTS = [path for path in SOURCES if ROOT / "tests" in path.parents and path.name != "fuzz.py"]  # which reads the time
CLOCKS = {
    f"time.{clock}{unit}"
    for clock in ("time", "perf_counter", "monotonic", "process_time", "thread_time")
    for unit in ("", "_ns")
}
HANGING = 300  # seconds: no test takes so long on the slowest and busiest machine


@pytest.mark.parametrize("path", TESTS, ids=names_of(TESTS))
def test_tests_read_no_clock_and_their_limits_only_guard_against_hanging(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in CLOCKS, f"{path.name}:{node.lineno}: give a clock instead"
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            read = {f"time.{alias.name}" for alias in node.names} & CLOCKS
            assert not read, f"{path.name}:{node.lineno}: give a clock instead of {read}"
        if isinstance(node, ast.keyword) and node.arg == "timeout" and isinstance(node.value, ast.Constant):
            limit = node.value.value
            assert limit is None or limit >= HANGING, f"{path.name}:{node.value.lineno}: a busy machine takes longer"


@pytest.mark.parametrize("path", SOURCES, ids=names_of(SOURCES))
def test_files_and_functions_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{path.relative_to(ROOT)} has {lines} lines, expected at most {LONGEST_FILE}"
    functions = [node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: n for node in functions if (n := _code_lines(node)) > LONGEST_FUNCTION}
    assert not long, f"{path.relative_to(ROOT)}: functions above {LONGEST_FUNCTION} lines without docstring: {long}"


KERNELS = [path for path in MODULES if PACKAGE / "kernels" in path.parents]


@pytest.mark.parametrize("path", KERNELS, ids=names_of(KERNELS))
def test_functions_of_kernels_have_few_parameters(path: Path) -> None:
    functions = [node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef)]
    many = {
        node.name: n
        for node in functions
        if (n := sum(isinstance(a, ast.arg) for a in ast.walk(node.args))) > MOST_PARAMETERS
    }
    assert not many, f"{path.relative_to(ROOT)}: functions with more than {MOST_PARAMETERS} parameters: {many}"


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
    return node.end_lineno - node.lineno + 1 - docstring


class TripleSource(NamedTuple):
    """The source of `f`, `f_fwd` and `f_bwd`, with the contexts and gradients that their signatures name."""

    path: Path
    f: str
    line: int
    classes: set[str]


def _triples(path: Path) -> list[TripleSource]:
    functions = {node.name: node for node in parse(path).body if isinstance(node, ast.FunctionDef)}
    found = []
    for f, node in functions.items():
        beside = [functions.get(f + suffix) for suffix in ("_fwd", "_bwd")]
        if all(beside):
            returned = " ".join(ast.unparse(function.returns) for function in beside if function.returns)
            classes = set(re.findall(r"\w+(?:Context|Grads)\b", returned))
            found.append(TripleSource(path, f, node.lineno, classes))
    return found


TRIPLES = [triple for path in MODULES for triple in _triples(path)]


@pytest.mark.parametrize("triple", TRIPLES, ids=[triple.f for triple in TRIPLES])
def test_a_triple_is_in_one_file(triple: TripleSource) -> None:
    body = parse(triple.path).body
    names = [getattr(node, "name", "") for node in body]
    where = triple.path.relative_to(ROOT)
    place = names.index(triple.f)
    expected = [triple.f, f"{triple.f}_fwd", f"{triple.f}_bwd"]
    assert names[place : place + 3] == expected, f"{where}: expected {expected} with nothing between them"
    above = place
    while above and isinstance(body[above - 1], ast.ClassDef):
        above -= 1
    earlier = {name for other in _triples(triple.path) if other.line < triple.line for name in other.classes}
    apart = triple.classes.intersection(names) - set(names[above:place]) - earlier
    assert not apart, f"{where}: {apart} must stand directly above {triple.f}, the first that uses it"


# Triples whose array code is in another file, and why.
ELSEWHERE = {
    "sparsemax": "it is entmax with alpha = 2",
    "conv1d": "recurrent networks have the same products, of one tap",
    "scaled_dot_product_attention": "it is the engine's own case, dot products and a softmax",
    "attention_partial": "it is scaled_dot_product_attention of some of the keys",
    "ragged_attention": "it is scaled_dot_product_attention of each sequence",
    "graph_attention": "its weights are a softmax of segments",
}


@pytest.mark.parametrize("triple", TRIPLES, ids=[triple.f for triple in TRIPLES])
def test_the_array_code_of_a_triple_is_directly_below_it(triple: TripleSource) -> None:
    names = [getattr(node, "name", "") for node in parse(triple.path).body]
    place = names.index(triple.f) + 3
    later = {name for other in _triples(triple.path) if other.line > triple.line for name in _array_code(other)}
    own = _array_code(triple) - later
    assert set(names[place : place + len(own)]) == own, f"{triple.path.name}: {own} must stand below {triple.f}_bwd"


@pytest.mark.parametrize("triple", TRIPLES, ids=[triple.f for triple in TRIPLES])
def test_the_array_code_of_a_triple_is_in_its_file(triple: TripleSource) -> None:
    where = triple.path.relative_to(ROOT)
    if where.parts[:3] == ("attnarray", "distributed", "dask"):
        return  # the tasks of its graph call array code
    elsewhere = _array_code(triple, here=False)
    assert bool(elsewhere) == (triple.f in ELSEWHERE), f"{where}: {triple.f} calls {elsewhere or 'nothing'} elsewhere"


def _array_code(triple: TripleSource, here: bool = True) -> set[str]:
    """The accelerated functions that f, f_fwd and f_bwd call: those of their own module, or those of others."""
    module = importlib.import_module(module_name(triple.path))
    functions = [node for node in parse(triple.path).body if isinstance(node, ast.FunctionDef)]
    three = [node for node in functions if node.name in (triple.f, f"{triple.f}_fwd", f"{triple.f}_bwd")]
    called = {
        node.func.id
        for f in three
        for node in ast.walk(f)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    found = {name: getattr(module, name, None) for name in called}
    return {name for name, f in found.items() if hasattr(f, "reference") and (f.__module__ == module.__name__) == here}


def test_every_public_triple_is_written_out() -> None:
    missing = set(attnarray.TRIPLES) - {triple.f for triple in TRIPLES}
    assert not missing, f"TRIPLES in attnarray/__init__.py promises f, f_fwd, f_bwd in one file for {missing}"


@pytest.mark.parametrize("f", attnarray.TRIPLES)
def test_the_types_of_contexts_results_and_gradients_are_public(f: str) -> None:
    for suffix in ("_fwd", "_bwd"):
        returned = typing.get_type_hints(getattr(attnarray, f + suffix))["return"]
        for kind in typing.get_args(returned) if typing.get_origin(returned) is tuple else (returned,):
            kind = typing.get_origin(kind) or kind
            if isinstance(kind, type) and kind.__module__.startswith("attnarray."):
                assert getattr(attnarray, kind.__name__) is kind


def test_the_stub_lists_every_public_name() -> None:
    triples = {f + suffix: module for f, module in attnarray.TRIPLES.items() for suffix in ("", "_fwd", "_bwd")}
    expected = {
        f"from attnarray{'' if name == module else '.' + module} import {name} as {name}"
        for name, module in {**attnarray._MODULES, **attnarray._TYPES, **triples}.items()
    }
    given = {line for node in parse(PACKAGE / "__init__.pyi").body for line in _single_imports(node)}
    lacking = "\n".join(["attnarray/__init__.pyi lacks these lines:", *sorted(expected - given)])
    surplus = "\n".join(["attnarray/__init__.pyi lists what attnarray does not give out:", *sorted(given - expected)])
    assert expected <= given, lacking
    assert given <= expected, surplus
    hidden = {line.split(" as ")[1] for line in given} - set(dir(attnarray))
    assert not hidden, f"attnarray.__dir__ lacks {hidden}"


def _single_imports(node: ast.stmt) -> list[str]:
    if not isinstance(node, ast.ImportFrom):
        return []
    return [f"from {node.module} import {ast.unparse(alias)}" for alias in node.names]

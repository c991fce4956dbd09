"""Compile all kernels for the CPU that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name, and link them with `shim.c`.

A kernel becomes a C function of integers, numbers and addresses of arrays. Its result is a status: whether there was no
scratch memory. Which arguments a kernel takes is what `warmup` calls it with.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import carray, types
from numba.core import codegen

from attnarray.kernels import MODE
from attnarray.kernels.numba.runtime import team_code, threads
from attnarray.kernels.numba.runtime.jit import EXACT, OPTIONS, CFunction, Kernel
from attnarray.kernels.numba.runtime.lazy import real_function
from attnarray.kernels.numba.runtime.library import PREFIX, SUFFIX, library_digest, source_digest
from attnarray.kernels.numba.vector.lanes import tile_size
from attnarray.kernels.table import KERNELS
from attnarray_build.levels import c_compiler

DTYPES = ("float32", "float64")
SHIM = Path(__file__).with_name("shim.c")
MANY = 2**40  # the size that arrays have for the compiler; kernels know the sizes themselves
C_TYPES = {"i": "int64_t", "b": "uint8_t", "I": "int64_t *", "float32": "float", "float64": "double", "R": "void *"}


class Signature(NamedTuple):
    """A kernel, and the arguments of one call by kind: see `runtime/library.py`."""

    kernel: Kernel
    kinds: str
    dtype: str


class Compiled(NamedTuple):
    """The object code of a C function, and how Numba names it."""

    code: bytes
    name: str
    returns: bool


def signatures() -> list[Signature]:
    """The signatures of all kernels that array code calls."""
    found: dict[Signature, None] = {}

    def note(kernel: Kernel, *args: Any) -> None:
        kinds = "".join(_kind(x) for x in args)
        real = next((x.dtype.name for x, kind in zip(args, kinds, strict=True) if kind in "rR"), "")
        found[Signature(kernel, kinds, real)] = None

    Kernel.__call__ = note  # type: ignore[method-assign, assignment]
    threads.run_parallel = lambda *_: None  # type: ignore[attr-defined]
    rows = {row["numba"].partition(":")[0] for row in KERNELS.values() if "numba" in row}
    for module in sorted(rows):
        for dtype in DTYPES:
            importlib.import_module(PREFIX + module).warmup(dtype)
    return list(found)


def _kind(x: Any) -> str:
    if isinstance(x, np.ndarray):
        assert x.ndim == 1, f"a kernel takes an array of shape {x.shape}, expected one of its integers or numbers"
        return "I" if x.dtype == np.int64 else "R"
    return "b" if isinstance(x, bool | np.bool_) else "r" if isinstance(x, np.floating | float) else "i"


def compiled(signature: Signature) -> Compiled:
    """The kernel as a function of addresses."""
    real = getattr(types, signature.dtype or "float64")
    kinds = {
        "i": types.int64, "b": types.boolean, "r": real, "I": types.CPointer(types.int64), "R": types.CPointer(real)
    }  # fmt: skip
    names = [f"x{n}" for n in range(len(signature.kinds))]
    arrays = {"I": "carray({}, MANY, np.int64)", "R": f"carray({{}}, MANY, np.{signature.dtype})"}
    given = [arrays.get(kind, "{}").format(name) for name, kind in zip(names, signature.kinds, strict=True)]
    variables = {"kernel": signature.kernel.real, "carray": carray, "MANY": MANY, "np": np}
    exec(f"def entry({', '.join(names)}): return kernel({', '.join(given)})", variables)
    return _native(variables["entry"], tuple(kinds[kind] for kind in signature.kinds))


def _native(function: Any, arguments: tuple[Any, ...]) -> Compiled:
    options = {**OPTIONS, "fastmath": set(EXACT), "no_cfunc_wrapper": True, "no_cpython_wrapper": True}
    dispatcher = numba.njit(function, **options)
    dispatcher.compile(arguments)
    result = dispatcher.overloads[arguments]
    returns = result.signature.return_type != types.none
    return Compiled(result.library._get_compiled_object(), result.fndesc.llvm_func_name, returns)


def entry(symbol: str, parameters: Sequence[str], made: Compiled) -> str:
    """A C function that calls what Numba compiled: its result, or else whether it failed."""
    given = "".join(f", {kind} x{n}" for n, kind in enumerate(parameters))
    passed = "".join(f", x{n}" for n in range(len(parameters)))
    result = "int64_t" if made.returns else "int"
    value = "result" if made.returns else "status != 0 && status != NONE"
    return (
        f'extern int32_t numba_{symbol}(int64_t *, void **{given}) __asm__(ASM_PREFIX "{made.name}");\n'
        f"EXPORT {result} {symbol}({given[2:]}) {{\n"
        "    int64_t result = 0;\n    void *error = 0;\n"
        f"    int32_t status = numba_{symbol}(&result, &error{passed});\n"
        f"    (void)status;\n    return {value};\n}}\n"
    )


def python_functions() -> str:
    """C functions with the names of Python's own, which call these by addresses that `attnarray_use_python` sets."""
    kinds, lines = {"w": "int64_t", "i": "int", "v": "void"}, []
    found = _members(team_code.PythonFunction)
    for n, function in enumerate(found):
        result, *arguments = (kinds[letter] for letter in function.signature)
        given = ", ".join(f"{kind} x{m}" for m, kind in enumerate(arguments)) or "void"
        passed = ", ".join(f"x{m}" for m in range(len(arguments)))
        call = f"(({result} (*)({', '.join(arguments) or 'void'}))python[{n}])({passed})"
        lines.append(f"{result} {function.name}({given}) {{ {'' if result == 'void' else 'return '}{call}; }}\n")
    return f"static void *python[{len(found)}];\n{''.join(lines)}" + (
        "EXPORT void attnarray_use_python(void *const *addresses) { memcpy(python, addresses, sizeof python); }\n"
    )


def _members(kind: Any) -> list[Any]:
    """All values of a type in `team_code.py`."""
    return [x for x in vars(team_code).values() if isinstance(x, kind)]


def build(level: str, work: Path, target: Path) -> None:
    """Write LEVEL.so, or what libraries are called here, and LEVEL.json into the folder `target`."""
    original = codegen.JITCPUCodegen._customize_tm_options

    def position_independent(self: Any, options: dict[str, Any]) -> None:
        original(self, options)
        options |= {"reloc": "pic", "codemodel": "small" if "64-v" in level else "default"}

    codegen.JITCPUCodegen._customize_tm_options = position_independent
    MODE.set("numba")
    text = [SHIM.read_text(), python_functions()]
    kernels: dict[str, Any] = {}
    todo = signatures()
    for n, signature in enumerate(todo):
        made, symbol = compiled(signature), f"attnarray_kernel_{n}"
        (work / f"{symbol}.o").write_bytes(made.code)
        text.append(
            entry(symbol, [C_TYPES[signature.dtype if kind == "r" else kind] for kind in signature.kinds], made)
        )
        kernel = {"kinds": signature.kinds, "returns": made.returns, "symbols": {}}
        kernels.setdefault(signature.kernel.name, kernel)["symbols"][signature.dtype] = symbol
        show_progress(n + 1, len(todo), f"{signature.kernel.name} {signature.dtype}")
    for function in _members(CFunction):
        arguments = function.function.__code__.co_argcount
        made = _native(real_function(function.function), (types.int64,) * arguments)
        (work / f"{function.symbol}.o").write_bytes(made.code)
        text.append(entry(function.symbol, ["int64_t"] * arguments, made))
    library = work / f"{level}{SUFFIX}"
    link(work, "\n".join(text), library)
    contents = {
        "sources": source_digest(),
        "tiles": {str(bits): tile_size(bits) for bits in (32, 64)},
        "python": [x.name for x in _members(team_code.PythonFunction)],
        "kernels": kernels,
    }
    contents["digest"] = library_digest(library, contents)
    aside = target / f"{library.name}.new"  # a library that a process has loaded is replaced, not written over
    shutil.copy(library, aside)
    os.replace(aside, target / library.name)
    (target / f"{level}.json").write_text(json.dumps(contents, indent=1) + "\n")


def link(work: Path, text: str, library: Path) -> None:
    """Compile the C functions, and make a library of them and all object code."""
    source = work / "entries.c"
    source.write_text(text)
    compiler = c_compiler()
    flags = [f"-DLEVEL={level_number(library.stem)}", "-O2", "-shared"]
    if sys.platform != "win32":
        flags += ["-fPIC", "-fvisibility=hidden"]
    if sys.platform == "linux":
        exported = work / "exported.map"
        exported.write_text("{ global: attnarray_*; local: *; };\n")
        flags += ["-Wl,-Bsymbolic", "-Wl,--no-undefined", "-Wl,-z,noexecstack", "-Wl,--strip-all"]
        flags += [f"-Wl,--version-script={exported}"]
    linked = sorted(map(str, work.glob("*.o"))) + (["-lm"] if sys.platform != "win32" else [])
    if subprocess.run([*compiler, *flags, "-o", str(library), str(source), *linked], check=False).returncode:
        sys.exit(f"{compiler[0]} failed, see above")


def level_number(level: str) -> int:
    """4 of x86-64-v4; 0 where there is one level."""
    return int(level[-1]) if "-v" in level else 0


def show_progress(done: int, count: int, kernel: str) -> None:
    """One line that is written over on a terminal, else every twentieth one."""
    line = f"  {done} of {count}: {kernel}"
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line}", end="\n" if done == count else "", flush=True)
    elif done % 20 == 0 or done == count:
        print(line, flush=True)


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

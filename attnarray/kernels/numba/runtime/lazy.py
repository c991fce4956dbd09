"""Numba and LLVM, imported when a kernel is compiled and no earlier: where precompiled ones run, they may be missing.

So kernel modules take `ir`, `types`, `cgutils` and `arrayobj` from here, as modules that are imported when an attribute
is first looked up, and decorators return a `Lazy` value, which is evaluated when code that uses it is compiled.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import CellType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

PACKAGE = __name__.partition(".")[0]


class LazyModule:
    """A module that is imported when an attribute is first looked up."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self._name), name)
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.np import arrayobj
else:
    ir, types = LazyModule("llvmlite.ir"), LazyModule("numba.types")
    cgutils, arrayobj = LazyModule("numba.core.cgutils"), LazyModule("numba.np.arrayobj")

__all__ = ["Lazy", "arrayobj", "cgutils", "intrinsic", "ir", "lazily", "overload", "real_function", "types"]

OVERLOADS: list[tuple[Callable[..., Any], Callable[..., Any]]] = []  # that Numba has not been told of


class Lazy:
    """A value that is `make()` in compiled code."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    if TYPE_CHECKING:  # in compiled code

        def __call__(self, *args: Any) -> Any: ...

    @property
    def real(self) -> Any:
        """The value. Two threads may make it at once, and either result may be used."""
        if self._made is None:
            self._made = self._make()
        return self._made


def lazily(make: Callable[..., Any]) -> Any:
    """Decorate a function to return its result as a `Lazy` value."""
    return functools.wraps(make)(lambda *args: Lazy(functools.partial(make, *args)))


@lazily
def intrinsic(function: Callable[..., Any]) -> Any:
    """Decorate a function that emits LLVM's instructions, as `numba.extending.intrinsic` does."""
    return importlib.import_module("numba.extending").intrinsic(function)


def overload(function: Callable[..., Any]) -> Callable[[Callable[..., Any]], None]:
    """Say what compiled code calls for a Python function, as `numba.extending.overload` does."""
    return lambda implementation: OVERLOADS.append((function, implementation))


def real_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose globals have no `Lazy` values any more."""
    while OVERLOADS:
        importlib.import_module("numba.extending").overload(OVERLOADS[-1][0])(OVERLOADS[-1][1])
        OVERLOADS.pop()
    assert isinstance(function, FunctionType)
    names = _names(function.__code__)
    variables = {name: _real(value, names) for name, value in function.__globals__.items() if name in names}
    variables |= {name: function.__globals__.get(name) for name in ("__builtins__", "__file__", "__name__")}
    closure = function.__closure__ and tuple(
        CellType(_real(cell.cell_contents, names)) for cell in function.__closure__
    )
    copy = FunctionType(function.__code__, variables, function.__name__, function.__defaults__, closure)
    return functools.update_wrapper(copy, function)


def _names(code: CodeType) -> set[str]:
    """Names of globals and attributes in a function, and in those that it defines."""
    return set(code.co_names).union(*(_names(const) for const in code.co_consts if isinstance(const, CodeType)))


def _real(value: Any, names: set[str]) -> Any:
    if isinstance(value, ModuleType) and value.__name__.partition(".")[0] == PACKAGE:
        copy = ModuleType(value.__name__)
        vars(copy).update({name: _real(each, names) for name, each in vars(value).items() if name in names})
        return copy
    return value.real if isinstance(value, Lazy) else value

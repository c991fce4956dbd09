"""Eight neighbouring numbers at a time, as one vector: for short rows whose length is a multiple of eight."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attnarray.kernels.numba.vector.lanes import Lanes
from attnarray.kernels.numba.vector.panel import load, store

EIGHT = 8


def eight_pass(body: Callable[..., dict[str, Lanes]]) -> Any:
    """Decorate a body to become a compiled function of pointers, that runs it on the eight numbers at each of them.

    The body returns what it changes by name.
    """
    names = tuple(inspect.signature(body).parameters)

    def run(_context: Any, *given: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[ir.Value]) -> ir.Value:
            kinds = [ir.VectorType(context.get_value_type(place.dtype), EIGHT) for place in given]
            loaded = [Lanes(builder, load(builder, *pair)) for pair in zip(values, kinds, strict=True)]
            changed = body(**dict(zip(names, loaded, strict=True)))
            for name, value in zip(names, values, strict=True):
                if name in changed:
                    store(builder, changed[name].value, value)
            return context.get_dummy_value()

        return types.void(*given), emit

    # Numba asks for the signature; star-arguments would be passed as one tuple.
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("_context", *names)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__name__ = body.__name__
    return intrinsic(run)

"""Shared code of the peers on JAX: one compiled function, gradients by jax.vjp."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from attnarray.bench.peers.peer import Call, Problem

BTHD = (0, 2, 1, 3)  # JAX's order of the axes; transposed outside the timing
INSTALL = "pip install jax"


def make_call(problem: Problem, function: Callable[..., Any], transposed: tuple[str, ...] = ()) -> Call:
    """A call of `function` compiled by jax.jit; arrays named in `transposed`, and the output, are (B, T, H, D)."""
    import jax

    jax.config.update("jax_enable_x64", True)  # else float64 is silently float32; float32 stays float32

    # Also where JAX sees a GPU.
    scope = functools.partial(jax.default_device, jax.devices("cpu")[0])

    def placed(array: np.ndarray, transposed: bool) -> Any:
        return jax.numpy.asarray(np.ascontiguousarray(array.transpose(BTHD)) if transposed else array)

    with scope():
        arrays = {name: placed(array, name in transposed) for name, array in problem.arrays.items()}
        dout = None if problem.dout is None else placed(problem.dout, bool(transposed))
    wanted = {name: arrays[name] for name in problem.wanted}
    constant = {name: array for name, array in arrays.items() if name not in wanted}

    def forward(wanted: Any, constant: Any) -> Any:
        return function(**wanted, **constant)

    def named(result: Any) -> dict[str, np.ndarray]:
        out, grads = result
        outs = {} if out is None else {"out": np.asarray(out)}
        found = {**outs, **{name: np.asarray(grad) for name, grad in grads.items()}}
        back = {"out", *transposed} if transposed else set()
        return {name: array.transpose(BTHD) if name in back else array for name, array in found.items()}

    with scope():
        return Call(_run(problem.case.direction, forward, wanted, constant, dout), named, scope)


def _run(direction: str, forward: Callable[..., Any], wanted: Any, constant: Any, dout: Any) -> Callable[[], Any]:
    import jax

    def pulled(dout: Any, wanted: Any, constant: Any) -> Any:
        out, pullback = jax.vjp(lambda inputs: forward(inputs, constant), wanted)
        return out, pullback(dout)[0]

    if direction == "forward":
        compiled = jax.jit(forward)
        return lambda: (jax.block_until_ready(compiled(wanted, constant)), {})
    if direction == "both":
        both = jax.jit(pulled)
        return lambda: jax.block_until_ready(both(dout, wanted, constant))
    _, pullback = jax.jit(lambda inputs: jax.vjp(lambda given: forward(given, constant), inputs))(wanted)
    backward = jax.jit(lambda pullback, dout: pullback(dout)[0])
    return lambda: (None, jax.block_until_ready(backward(pullback, dout)))

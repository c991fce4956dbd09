"""attnarray itself: with the kernels that it chooses, and as array code alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

import attnarray
from attnarray import tree
from attnarray.backend import asarray, to_numpy, use_backend
from attnarray.bench.peers.peer import Call, Peer, Problem
from attnarray.dispatch import KernelMode, use_kernels
from attnarray.triples import find_triple


def prepare(problem: Problem, kernels: KernelMode) -> Call:
    """The case as a user of the library writes it, on arrays of the problem's backend."""
    case = problem.case
    triple = find_triple(getattr(attnarray, case.function))
    with use_backend(problem.backend):
        arguments = {**tree.map(asarray, problem.arrays), **case.options}
        dout = None if problem.dout is None else tree.map(asarray, problem.dout)

    def forward() -> Any:
        return triple.f(**arguments), None

    def both() -> Any:
        out, ctx = triple.fwd(**arguments)
        return out, triple.bwd(dout, ctx)

    def scope() -> AbstractContextManager[Any]:
        return nullcontext() if kernels == "auto" else use_kernels(kernels)

    if case.direction != "backward":
        return Call(forward if case.direction == "forward" else both, named, scope)
    with scope():
        _, ctx = triple.fwd(**arguments)
    return Call(lambda: (None, triple.bwd(dout, ctx)), named, scope)


def named(result: Any) -> dict[str, np.ndarray]:
    """Outputs and gradients by name on the host; the leaves of trees are called out.0, out.lse and the like."""
    out, grads = result
    return {name: to_numpy(leaf) for name, leaf in [*_leaves(out, "out"), *_leaves(grads)]}


def _leaves(results: Any, *prefix: str) -> Iterator[tuple[str, Any]]:
    for path, leaf in tree.flatten(results):
        yield ".".join([*prefix, *map(str, path)]), leaf


BACKENDS = ("numpy", "cupy")
AUTO = Peer(
    "attnarray",
    "this library, with the kernels that it chooses",
    functools.partial(prepare, kernels="auto"),
    ours=True,
    backends=BACKENDS,
)
REFERENCE = Peer(
    "reference",
    "this library as array code, without kernels",
    functools.partial(prepare, kernels="reference"),
    ours=True,
    backends=BACKENDS,
)

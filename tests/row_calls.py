"""How the kernels along rows are called: arguments in float64 for any shape, with and without each option."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Arguments = tuple[Any, ...]


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers of size 1, every fiftieth of size 20."""
    numbers = rng.standard_normal(shape)
    return np.where(rng.random(shape) < 0.02, 20.0 * numbers, numbers)


def reference(name: str, arguments: Arguments) -> tuple[np.ndarray | None, ...]:
    module, _, function = name.partition(":")
    with np.errstate(all="ignore"):
        return as_tuple(getattr(importlib.import_module(f"attnarray.{module}"), function).reference(*arguments))


def as_tuple(results: Any) -> tuple[np.ndarray | None, ...]:
    return results if isinstance(results, tuple) else (results,)


def softmax_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    """Every axis, with masks of every shape that broadcasts; some of their rows are empty."""
    shapes = itertools.product(*((size, 1) for size in shape)) if len(shape) > 2 else [shape]
    masks = [None, rng.random(shape[-1:]) < 0.5, *(rng.random(part) < 0.3 for part in shapes)]
    for axis, mask in itertools.product(range(len(shape)), masks):
        yield normal(rng, *shape), mask, axis


def softmax_gradient_calls(rng: np.random.Generator, shape: tuple[int, ...], forward: str) -> Iterator[Arguments]:
    for x, mask, axis in softmax_calls(rng, shape):
        yield normal(rng, *shape), *reference(forward, (x, mask, axis)), axis


def norm_calls(rng: np.random.Generator, shape: tuple[int, ...], parameters: int) -> Iterator[Arguments]:
    """With and without weight and, for two parameters, bias; weights and 1 / deviations are about 1, and not above."""
    for given in itertools.product((True, False), repeat=parameters):
        yield normal(rng, *shape) + 2.0, *(rng.uniform(0.5, 1.0, shape[-1]) if there else None for there in given), 1.0


def norm_gradient_calls(rng: np.random.Generator, shape: tuple[int, ...], forward: str) -> Iterator[Arguments]:
    for x, weight, *bias, eps in norm_calls(rng, shape, 2 if "layer" in forward else 1):
        kept = reference(forward, (x, weight, *bias, eps))[1:]
        yield normal(rng, *shape), x, *kept, weight, *(there is not None for there in bias)


def activation_calls(
    rng: np.random.Generator, shape: tuple[int, ...], arrays: int, *options: str
) -> Iterator[Arguments]:
    for option in options or [None]:
        yield *(2.0 * normal(rng, *shape) for _ in range(arrays)), *([option] if option else [])


def loss_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    """Rows are ignored by a number that is no class, by one that is, and all of them."""
    rows, width = int(np.prod(shape[:-1])), shape[-1]
    for ignore_index, smoothing in itertools.product((-100, 0), (0.0, 0.3, 1.0)):
        classes = np.where(rng.random(rows) < 0.2, ignore_index, rng.integers(0, width, rows))
        yield normal(rng, rows, width), classes, ignore_index, smoothing
    yield normal(rng, rows, width), np.full(rows, -5), -5, 0.3


def loss_gradient_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    for x, classes, *options in loss_calls(rng, shape):
        kept = reference("ops.loss:cross_entropy_forward", (x, classes, *options))[1:]
        yield normal(rng, len(x)), x, classes, *kept, *options


CALLS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Iterator[Arguments]]] = {
    "ops.softmax:softmax_forward": softmax_calls,
    "ops.softmax:softmax_backward": lambda *a: softmax_gradient_calls(*a, "ops.softmax:softmax_forward"),
    "ops.softmax:log_softmax_forward": softmax_calls,
    "ops.softmax:log_softmax_backward": lambda *a: softmax_gradient_calls(*a, "ops.softmax:log_softmax_forward"),
    "ops.norm:layer_norm_forward": lambda *a: norm_calls(*a, 2),
    "ops.norm:layer_norm_backward": lambda *a: norm_gradient_calls(*a, "ops.norm:layer_norm_forward"),
    "ops.norm:rms_norm_forward": lambda *a: norm_calls(*a, 1),
    "ops.norm:rms_norm_backward": lambda *a: norm_gradient_calls(*a, "ops.norm:rms_norm_forward"),
    "ops.gelu:gelu_forward": lambda *a: activation_calls(*a, 1, "none", "tanh"),
    "ops.gelu:gelu_backward": lambda *a: activation_calls(*a, 2, "none", "tanh"),
    "ops.activations:silu_forward": lambda *a: activation_calls(*a, 1),
    "ops.activations:silu_backward": lambda *a: activation_calls(*a, 2),
    "ops.loss:cross_entropy_forward": loss_calls,
    "ops.loss:cross_entropy_backward": loss_gradient_calls,
}

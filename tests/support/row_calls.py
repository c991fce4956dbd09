"""Calls of the kernels along rows: arguments for any shape, with and without each option, in any layout."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from attnarray.ops.rotary import Rotation
from attnarray.ops.rotary_scaling import plain_frequencies
from attnarray.optim.adam import AdamNumbers

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


def entmax_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    for alpha in (1.5, 2.0):
        yield from ((*arguments, alpha) for arguments in softmax_calls(rng, shape))


def entmax_gradient_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    for x, mask, axis, alpha in entmax_calls(rng, shape):
        yield normal(rng, *shape), *reference("ops.entmax:_entmax", (x, mask, axis, alpha)), axis, alpha


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


def dropout_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    """By seeds of one word and of two, and by masks of every shape that broadcasts; p may be 1."""
    for seed, p in itertools.product((5, 2**63 + 2**32 + 1), (1e-12, 0.3, 1.0)):
        yield normal(rng, *shape), p, seed, None
    for part in [(), shape[-1:], *itertools.product(*((size, 1) for size in shape))]:
        yield normal(rng, *shape), 0.3, None, np.asarray(rng.random(part) < 0.6)
    yield normal(rng, *shape), 1.0, None, rng.random(shape) < 0.6


def embedding_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    """Few indices, and so many that the kernel copies their rows."""
    for size, dtype, count in ((1, np.int64, 3), (9, np.uint8, 700), (9, np.int32, 0)):
        yield normal(rng, size, shape[-1]), rng.integers(0, size, count).astype(dtype)


def embedding_gradient_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    """Indices that occur many times, once, and never."""
    for size, dtype in ((1, np.int64), (7, np.uint8), (2000, np.int32)):
        yield normal(rng, *shape), np.asarray(rng.integers(0, size, shape[:-1])).astype(dtype), size


def loss_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    """With ignored rows: by an index that is not a class, by one that is, and all rows."""
    rows, width = int(np.prod(shape[:-1])), shape[-1]
    for ignore_index, smoothing in itertools.product((-100, 0), (0.0, 0.3, 1.0)):
        classes = np.where(rng.random(rows) < 0.2, ignore_index, rng.integers(0, width, rows))
        yield normal(rng, rows, width), classes, ignore_index, smoothing
    yield normal(rng, rows, width), np.full(rows, -5), -5, 0.3


def segment_calls(rng: np.random.Generator, shape: tuple[int, ...], masked: bool = True) -> Iterator[Arguments]:
    """Sorted and not, with segments of one entry, of many and of none; some segments are fully masked."""
    shape = shape if len(shape) > 1 else (*shape, 1)
    entries = shape[-2]
    for count, dtype, is_sorted in ((1, np.int64, False), (7, np.uint8, True), (90, np.int32, False)):
        segments = rng.integers(0, count, entries).astype(dtype)
        segments = np.sort(segments) if is_sorted else segments
        hidden = rng.random(shape) < 0.4, (segments % 3 > 0)[:, None]
        for mask in (None, *hidden) if masked else (None,):
            yield (normal(rng, *shape), segments, count, *([mask] if masked else []))


def segment_gradient_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    for x, segments, count, mask in segment_calls(rng, shape):
        out = reference("ops.segments:_segment_softmax", (x, segments, count, mask))
        yield normal(rng, *x.shape), *out, segments, count


def loss_gradient_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    for x, classes, *options in loss_calls(rng, shape):
        kept = reference("ops.loss:_cross_entropy", (x, classes, *options))[1:]
        yield normal(rng, len(x)), x, classes, *kept, *options


def cell_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    """The last axis is that of the cells."""
    gates = (*shape[:-1], 4 * shape[-1])
    yield normal(rng, *gates), normal(rng, *gates), normal(rng, *shape)


def cell_gradient_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    for products, inputs, before in cell_calls(rng, shape):
        gates, h, c = reference("ops.lstm_cell:lstm_cell", (products, inputs, before))
        yield normal(rng, *h.shape), normal(rng, *h.shape), gates, before, c


def rotary_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    """Both kinds of pairs, all features and some, both directions, with positions in order and in any."""
    for dims in {shape[-1] // 2 * 2, shape[-1] // 4 * 2} - {0} if len(shape) > 1 else ():
        for interleaved, direction in itertools.product((False, True), (1.0, -1.0)):
            for axis in (-2, -3)[: len(shape) - 1]:
                places = rng.integers(-50, 2000, shape[axis] if direction < 0 else (*shape[:axis], 1))
                frequencies = plain_frequencies(dims, 1e3)
                yield normal(rng, *shape), None, 3, Rotation(frequencies, 1.0, interleaved, axis), direction
                yield normal(rng, *shape), places, 0, Rotation(frequencies, 1.5, interleaved, axis), direction
                if dims > 2:
                    rotation = Rotation(frequencies, 1.0, interleaved, axis, (1, dims // 2 - 1))
                    places = np.stack([places, places[..., ::-1]], axis=-1)
                    yield normal(rng, *shape), places, 0, rotation, direction


def adam_calls(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Arguments]:
    """With and without decay of the weights; moments as they are after some steps."""
    for decay in (1.0, 0.99):
        p, g, m = (normal(rng, *shape) for _ in range(3))
        yield p, g, m, normal(rng, *shape) ** 2, AdamNumbers(0.9, 0.999, 0.01, decay, 1e-6)


CALLS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Iterator[Arguments]]] = {
    "ops.softmax:_softmax": softmax_calls,
    "ops.softmax:_softmax_backward": lambda *a: softmax_gradient_calls(*a, "ops.softmax:_softmax"),
    "ops.softmax:_log_softmax": softmax_calls,
    "ops.softmax:_log_softmax_backward": lambda *a: softmax_gradient_calls(*a, "ops.softmax:_log_softmax"),
    "ops.entmax:_entmax": entmax_calls,
    "ops.entmax:_entmax_backward": entmax_gradient_calls,
    "ops.norm:_layer_norm": lambda *a: norm_calls(*a, 2),
    "ops.norm:_layer_norm_backward": lambda *a: norm_gradient_calls(*a, "ops.norm:_layer_norm"),
    "ops.norm:_rms_norm": lambda *a: norm_calls(*a, 1),
    "ops.norm:_rms_norm_backward": lambda *a: norm_gradient_calls(*a, "ops.norm:_rms_norm"),
    "ops.gelu:_gelu": lambda *a: activation_calls(*a, 1, "none", "tanh"),
    "ops.gelu:_gelu_backward": lambda *a: activation_calls(*a, 2, "none", "tanh"),
    "ops.activations:_relu": lambda *a: activation_calls(*a, 1),
    "ops.activations:_relu_backward": lambda *a: activation_calls(*a, 2),
    "ops.activations:_silu": lambda *a: activation_calls(*a, 1),
    "ops.activations:_silu_backward": lambda *a: activation_calls(*a, 2),
    "ops.activations:_tanh": lambda *a: activation_calls(*a, 1),
    "ops.activations:_tanh_backward": lambda *a: activation_calls(*a, 2),
    "ops.activations:_sigmoid": lambda *a: activation_calls(*a, 1),
    "ops.activations:_sigmoid_backward": lambda *a: activation_calls(*a, 2),
    "ops.lstm_cell:lstm_cell": cell_calls,
    "ops.lstm_cell:lstm_cell_backward": cell_gradient_calls,
    "ops.dropout:_dropout": dropout_calls,
    "ops.rotary:_rotary": rotary_calls,
    "optim.adam:adam_step": adam_calls,
    "ops.embedding:_embedding": embedding_calls,
    "ops.embedding:_embedding_backward": embedding_gradient_calls,
    "ops.segments:_segment_softmax": segment_calls,
    "ops.segments:_segment_softmax_backward": segment_gradient_calls,
    "ops.segments:sum_segments": lambda *a: ((np.abs(x), *rest) for x, *rest in segment_calls(*a, masked=False)),
    "ops.loss:_cross_entropy": loss_calls,
    "ops.loss:_cross_entropy_backward": loss_gradient_calls,
}


def within(array: np.ndarray) -> np.ndarray:
    """The same numbers in the middle of a larger array, with garbage around them."""
    rubbish = np.nan if array.dtype.kind == "f" else 1
    wide = np.full([size + 2 for size in array.shape], rubbish, array.dtype)
    wide[(slice(1, -1),) * array.ndim] = array
    return wide[(slice(1, -1),) * array.ndim]


def flipped(array: np.ndarray) -> np.ndarray:
    """The same numbers, with each axis reversed in memory."""
    flip = (slice(None, None, -1),) * array.ndim
    return array[flip].copy()[flip]


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS: list[Callable[[np.ndarray], np.ndarray]] = [within, flipped, read_only, np.asfortranarray]

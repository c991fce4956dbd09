"""Calls of the kernels of the table and their references, and the distance of their results."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from attnarray.attention.engine import attention
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.normalizers import masked_softmax
from attnarray.dispatch import available_kernels
from attnarray.kernels.table import KERNELS

Arguments = tuple[Any, ...]


USABLE = {(status.function, status.backend): status.reason for status in available_kernels()}


def reference_of(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f"attnarray.{module}"), function).reference


def kernel_of(name: str, backend: str) -> Callable[..., Any]:
    module, _, function = KERNELS[name][backend].partition(":")
    return getattr(importlib.import_module(f"attnarray.kernels.{backend}.{module}"), function)


def scorings(b: int, h: int, t: int, s: int, every: int = 1) -> Iterator[ScoreModifiers]:
    """Every n-th of all combinations of options; biases and masks go through all shapes that broadcast."""
    rng = np.random.default_rng(0)
    shapes = [None, *itertools.product((b, 1), (h, 1), (t, 1), (s, 1))]
    combinations = itertools.product(
        shapes,
        (None, 0.9),
        (None, 0, 2),
        (None, 0, s // 2),
        (0, 3, np.arange(b) * 2 - 1),
        (None, np.minimum(np.arange(b) * 3, s)),  # no key at all in the first batch
        (None, rng.standard_normal(h)),
    )
    for n, (bias, softcap, left, right, q_offset, lengths, sinks) in enumerate(combinations):
        if n % every:
            continue
        mask = shapes[n // every % len(shapes)]
        yield ScoreModifiers(
            scale=0.7,
            softcap=softcap,
            bias=None if bias is None else rng.standard_normal(bias),
            mask=None if mask is None else rng.random(mask) < 0.7,
            left=left,
            right=right,
            q_offset=q_offset,
            kv_lengths=lengths,
            sinks=sinks,
        )


def arguments_of(name: str, dots: np.ndarray, scoring: ScoreModifiers) -> Arguments:
    """The arguments of a reference in float64, given the dot products."""
    if name == "attention.normalizers:masked_softmax":
        return dots, scoring
    rng = np.random.default_rng(1)
    if name.startswith(
        "attention.engine"
    ):  # with the unit vectors as keys, shared by all heads, the queries are the dots
        batch, _, _, keys = dots.shape
        key = np.broadcast_to(np.eye(keys), (batch, 1, keys, keys))
        inputs = (dots, key, rng.standard_normal((batch, 1, keys, 5)))
        if name == "attention.engine:attention":
            return *inputs, scoring
        assert name == "attention.engine:attention_backward", f"say here how {name} is called"
        with np.errstate(all="ignore"):
            out, lse = attention.reference(*inputs, scoring)
        return rng.standard_normal(out.shape), rng.standard_normal(lse.shape), *inputs, out, lse, scoring
    assert name == "attention.normalizers:masked_softmax_backward", f"say here how {name} is called"
    with np.errstate(all="ignore"):
        _, lse = masked_softmax.reference(dots, scoring)
    return dots, rng.standard_normal(dots.shape), lse, rng.standard_normal(lse.shape), scoring


def in_dtype(arguments: Any, dtype: str) -> Any:
    """Copies, with floats in `dtype`."""

    def convert(value: Any) -> Any:
        if isinstance(value, ScoreModifiers):
            return ScoreModifiers(*map(convert, value))
        if isinstance(value, np.ndarray):
            return value.astype(dtype if value.dtype.kind == "f" else value.dtype)
        return value

    return tuple(map(convert, arguments))


def largest_distance(array: np.ndarray, exact: np.ndarray) -> float:
    """max |array - exact|, where equal infinities are 0 apart."""
    equal = array == exact
    with np.errstate(invalid="ignore"):
        distance = np.abs(array.astype(np.float64) - exact)
    assert np.all(np.isfinite(distance) | equal), "NaN, or an infinity in the wrong place"
    return float(np.max(np.where(equal, 0.0, distance), initial=0.0))

"""A peer: a library's implementation of a case, prepared outside the timing."""

from __future__ import annotations

import functools
import importlib.util
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from attnarray.bench.cases import SDPA, BenchCase
from attnarray.masks import Causal, Dense, Mask, Padding, Window


class Unsupported(Exception):
    """A peer cannot do a case; the message says in a few words why."""


@dataclass(frozen=True)
class Problem:
    """A case with its arrays on the host, the same for every peer.

    `dout` is the cotangent of the output (a tree like it), None for a forward; `wanted` names the inputs whose
    gradients are asked for.
    """

    case: BenchCase
    arrays: dict[str, np.ndarray]
    dout: Any
    wanted: tuple[str, ...]
    backend: str = "numpy"
    threads: int = 1

    @functools.cached_property
    def positions(self) -> Mask | None:
        """Causal, window and lengths as one mask; None if they mask nothing."""
        options = self.case.options
        masks: list[Mask] = []
        if options.get("is_causal") and self.q_offset < self.keys - 1:  # else the first query attends to every key
            masks.append(Causal())
        if options.get("window") is not None:
            masks.append(Window(*options["window"]))
        if "kv_lengths" in self.arrays:
            masks.append(Padding(self.arrays["kv_lengths"]))
        return functools.reduce(operator.and_, masks) if masks else None

    @functools.cached_property
    def mask(self) -> np.ndarray | None:
        """All masks as one boolean array that broadcasts to (B, H, T, S), True = attend; None if there are none."""
        masks = [mask for mask in [self.positions] if mask is not None]
        if "attn_mask" in self.arrays:
            masks.append(Dense(self.arrays["attn_mask"]))
        if not masks:
            return None
        whole = functools.reduce(operator.and_, masks)
        return np.asarray(whole.to_dense(self.queries, self.keys, q_offset=self.q_offset))

    @property
    def plainly_causal(self) -> bool:
        """Whether is_causal, aligned to the first key, is the only mask."""
        others = self.case.options.get("window") is not None or {"kv_lengths", "attn_mask"}.intersection(self.arrays)
        return self.positions is not None and not self.q_offset and not others

    @property
    def is_attention(self) -> bool:
        return self.case.function == SDPA

    @property
    def q_offset(self) -> int:
        return int(self.case.options.get("q_offset", 0))

    @property
    def queries(self) -> int:
        return int(self.arrays["query"].shape[-2])

    @property
    def keys(self) -> int:
        return int(self.arrays["key"].shape[-2])

    @property
    def groups(self) -> int:
        """Query heads for each key head."""
        return int(self.arrays["query"].shape[-3] // self.arrays["key"].shape[-3])

    def refuse(self, peer: str, *options: str) -> None:
        """Raise `Unsupported` if the case has one of these options."""
        for option in options:
            if self.case.options.get(option) or option in self.arrays:
                raise Unsupported(f"{peer} has no {option}")


class Call(NamedTuple):
    """A prepared call: `run` runs it once and waits for it, `named` converts its result to NumPy by name.

    Names are "out" and those of the wanted inputs. `scope` is entered around samples, outside the timing.
    `forget` makes the library free memory that it caches for the next call.
    """

    run: Callable[[], Any]
    named: Callable[[Any], dict[str, np.ndarray]]
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    forget: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Peer:
    """A library's implementation of the cases. `needs` are the packages that it imports; `ours` is this library."""

    name: str
    what: str
    prepare: Callable[[Problem], Call]
    needs: tuple[str, ...] = ()
    install: str = ""
    ours: bool = False
    backends: tuple[str, ...] = ("numpy",)

    def missing(self, backend: str = "numpy") -> str:
        """Why it cannot be used here; empty if it can."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if absent:
            return f"{' and '.join(absent)} not installed{f': {self.install}' if self.install else ''}"
        return "" if backend in self.backends else f"not measured on {backend} arrays"

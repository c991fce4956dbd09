"""Unsupported states are refused before anything is written, and objects of classes are restored unchanged."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from attnarray.checkpoints import load_state, save_state
from tests.support.published import fails, same


class Moments(NamedTuple):
    mean: np.ndarray
    counts: list[int]


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float
    name: str = "plain"


def test_custom_classes_are_given_to_load(tmp_path: Path) -> None:
    state = {"moments": Moments(np.ones(2), [1, 2]), "settings": Settings(0.1)}
    save_state(tmp_path / "run", state)
    same(load_state(tmp_path / "run", types=(Moments, Settings)), state)
    save_state(tmp_path / "one", state["moments"])
    same(load_state(tmp_path / "one", types=Moments), state["moments"])
    fails(ValueError, "holds a Moments, a class that is not known. Give it: load_state(path, types=(Moments,)).",
          lambda: load_state(tmp_path / "run"))  # fmt: skip
    other = collections.namedtuple("Moments", ["mean"])
    fails(ValueError, "holds a Moments of mean, counts, but that class has mean: the class has changed",
          lambda: load_state(tmp_path / "run", types=(other, Settings)))  # fmt: skip
    fails(TypeError, "`state` holds two classes called 'Moments', the second at 1: rename one",
          lambda: save_state(tmp_path / "two", [Moments(np.ones(1), []), other(1)]))  # fmt: skip


@dataclasses.dataclass
class Derived:
    """Restored from `rate` only."""

    rate: float
    half: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.half = self.rate / 2


@dataclasses.dataclass
class Doubling:
    """Changed whenever it is restored."""

    rate: Any

    def __post_init__(self) -> None:
        self.rate = self.rate * 2


@dataclasses.dataclass
class Counting:
    steps: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass
class Started:
    rate: float
    start: dataclasses.InitVar[int]


class Listed(list):
    pass


@dataclasses.dataclass
class Counted(dict):
    steps: int = 0


class Level(enum.IntEnum):
    HIGH = 3


Philox = collections.namedtuple("Philox", ["seed"])


def test_classes_that_cannot_be_restored_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    save_state(path, [Derived(0.5), Counting()])
    same(load_state(path, types=(Derived, Counting)), [Derived(0.5), Counting()])
    counting = Counting()
    counting.steps = 3
    refused = "Restored from their fields, they"
    for state, expected in (
        (Doubling(1.0), f"`state` holds a Doubling. {refused} have other fields. Give their fields in a dict."),
        ([1, Doubling(np.ones(2))], f"{refused} have other fields."),
        (counting, f"`state` holds a Counting. {refused} have other fields."),
        (Started(0.1, 3), f"`state` holds a Started. {refused} raise TypeError: "),
        (Philox(3), "`state` holds two classes called 'Philox', the second at the root: rename one."),
    ):
        fails(TypeError, expected, lambda state=state: save_state(path, state))
    same(load_state(path, types=(Derived, Counting)), [Derived(0.5), Counting()])


class Labelled:
    """Like a column of a table: an array with labels."""

    shape, dtype = (2,), np.dtype(float)

    def __array__(self, *_arguments: Any, **_options: Any) -> np.ndarray:
        return np.ones(2)


def recursive() -> Any:
    state: Any = {}
    state["a"] = state
    return state


WRONG: list[tuple[Any, str]] = [
    ({"data": {"file": sys}}, "at data.file, a module, which cannot be saved. Give arrays, numbers"),
    ({"rng": np.random.default_rng(0)}, "at rng, a Generator, which cannot be saved."),
    ([np.array(["a"])], "holds an array of shape (1,) and dtype str32 at 0, expected a dtype of float16"),
    ({"a": {1.5: 2}}, "`state` has the key 1.5 at a, expected strings or integers."),
    ([{1, 2}], "holds {1, 2} at 0, a set, which cannot be saved."),
    (np.ones(2, complex), "dtype complex128 at the root, expected a dtype of"),
    ([np.ones(2, np.longdouble)], f"dtype {np.dtype(np.longdouble).name} at 0, expected a dtype of float16"),
    ([np.longdouble(1)], "at 0, expected a dtype of float16"),
    (np.array([None]), "dtype object at the root, expected a dtype of"),
    (np.array(["2026"], "M8[D]"), "at the root, expected a dtype of"),
    (np.ones(2, [("a", "f4")]), "at the root, expected a dtype of"),
    (np.ones(2, ml_dtypes.float8_e4m3fn), "dtype float8_e4m3fn at the root, expected a dtype of"),
    ({"w": np.ma.masked_array([1.0], [True])}, "`state.w` has type MaskedArray, which overrides arithmetic"),
    ({"w": np.ones((2, 2)).view(np.matrix)}, "`state.w` has type matrix, which overrides arithmetic"),
    ({"w": Labelled()}, "`state.w` has type Labelled, expected an array."),
    ({True: 1}, "`state` has the key True at the root, expected strings or integers."),
    ({("a",): 1}, "`state` has the key ('a',) at the root, expected strings or integers."),
    (collections.OrderedDict(a=1), "at the root, a OrderedDict, which cannot be saved."),
    (Listed([1]), "at the root, a Listed, which cannot be saved."),
    (Counted(2), "at the root, a Counted, which cannot be saved."),
    (Level.HIGH, "at the root, a Level, which cannot be saved."),
    (b"bytes", "at the root, a bytes, which cannot be saved."),
    (1j, "at the root, a complex, which cannot be saved."),
    (time.localtime(), "at the root, a struct_time, which cannot be saved."),
    ([10**5000], "`state` holds an integer of 16610 bits at 0, expected 14000 at most."),
    (functools.reduce(lambda inner, _: [inner], range(102), 1), "`state` is nested more than 100 levels deep"),
    (recursive(), "`state` is nested more than 100 levels deep, perhaps recursively, at a.a.a.a."),
]


@pytest.mark.parametrize(("state", "expected"), WRONG, ids=[expected[:40] for _, expected in WRONG])
def test_what_cannot_be_saved_is_refused(state: Any, expected: str, tmp_path: Path) -> None:
    save_state(tmp_path / "run", {"step": 1})
    fails(TypeError, expected, lambda: save_state(tmp_path / "run", state))
    assert load_state(tmp_path / "run") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

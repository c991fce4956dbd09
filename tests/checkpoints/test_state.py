"""The state of a training run: the same bits when loaded, complete if the process is killed, verified when read."""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnarray as aa
from attnarray import optim, tree
from attnarray.checkpoints import load_state, save_state
from attnarray.models import BERT
from tests.support.libraries import Library
from tests.support.published import fails, safetensors_numpy, same

MODEL = BERT(13, 8, 8, 2, 2, dropout=0.1, attention_dropout=0.1)
TOKENS = np.random.default_rng(0).integers(13, size=(20, 6))


STATES: dict[str, Any] = {
    "values": {"step": 3, "loss": 0.1, "name": "ä\n'", "none": None, "flag": True, "large": 2**200},
    "limits": [1e400, -1e400, -0.0, 5e-324],
    "nan": {"loss": float("nan")},
    "structure": [(1, [2, ()]), {}, {"a.b": {"c": 1}, 7: {"x": [None]}}],
    "arrays": {"a": np.arange(6.0).reshape(2, 3), "b": np.float32([]), "c": np.array(3), "d": np.array([True, False])},
    "names that meet": {"a.b": np.ones(2), "a": {"b": np.zeros(3), "b'": np.ones(1)}},
    "dtypes": [np.arange(3, dtype=name) for name in ("int8", "uint16", "uint64", "float16", ml_dtypes.bfloat16)],
    "strides": [np.arange(12.0).reshape(3, 4).T, np.arange(8)[::-2], np.broadcast_to(np.float32(2), (3, 2))],
    "scalars": {"loss": np.float32(0.1), "n": np.int64(7), "flag": np.bool_(True)},
    "not a number": np.array([np.nan, -np.nan, np.inf, -0.0]),
    "an array alone": np.arange(3),
    "names of the format": {"__metadata__": np.ones(1), "": {"": np.ones(2)}, "a": {"": [np.ones(3)]}, "a.": 4},
    "beside it": {"__metadata__": np.ones(1), "__metadata__'": np.ones(2), "the root": 3, "\0'\"\n\\": np.ones(4)},
    "no text": {"\ud800": np.ones(1), "\\ud800": np.ones(2), "ä\U0001f600": np.ones(3), "s": "\udfff"},
    "keys": {"0": np.ones(1), 0: np.ones(2), "-1": 1, -1: 2, "list": [np.ones(1)], "tuple": (np.ones(1),), 10**30: 0},
    "empty": [np.zeros((0, 3)), np.zeros((3, 0, 2), np.int8), np.zeros(0, bool), np.zeros(0, ml_dtypes.bfloat16)],
    "small scalars": [ml_dtypes.bfloat16(0.1), np.float16(-0.0), np.uint64(2**64 - 1), np.array(2.0)[()]],
    "depth": functools.reduce(lambda inner, _: [inner], range(99), {"w": np.ones(1)}),
    "a large integer": [2**13_000, -(2**13_000)],
    "generators": {"philox": aa.Philox(2**64 - 1), "numpy": np.random.default_rng(4).bit_generator.state},
    "an older generator": np.random.MT19937(3).state,
    "optimizers": [optim.adamw_init({"w": np.ones(3)}), optim.sgd_init({"w": [np.ones(2), None]})],
    "none": None,
}  # fmt: skip


@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_what_is_saved_comes_back(state: Any, tmp_path: Path) -> None:
    save_state(tmp_path / "run.safetensors", state)
    same(load_state(tmp_path / "run.safetensors"), state)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.builds(np.ones, st.lists(st.integers(0, 3), max_size=3), st.sampled_from(["f4", "i8", "?"])),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text("a.'_0", max_size=3) | st.integers(-1, 1) | st.just("__metadata__"), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(TREES)
def test_any_tree_comes_back(state: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_state(f"{folder}/run", state)
        same(load_state(f"{folder}/run"), state)


def test_read_only_arrays_come_back(tmp_path: Path) -> None:
    array = np.arange(6.0)
    array.flags.writeable = False
    save_state(tmp_path / "run", [array, array[::2]])
    same(load_state(tmp_path / "run"), [np.arange(6.0), np.arange(0.0, 6.0, 2.0)])


def test_other_byte_orders_become_that_of_the_machine(tmp_path: Path) -> None:
    save_state(tmp_path / "run", np.arange(3, dtype=">f8"))
    same(load_state(str(tmp_path / "run")), np.arange(3, dtype="f8"))


def test_every_library(library: Library, tmp_path: Path) -> None:
    params = library.moved(MODEL.init(aa.Philox(0)))
    save_state(tmp_path / "run", {"params": params, "optimizer": optim.adamw_init(params)})
    with aa.use_backend(library.name):
        loaded = load_state(tmp_path / "run")
    assert isinstance(loaded["optimizer"], optim.AdamWState)
    for (path, leaf), (_, mine) in zip(*(tree.flatten(each) for each in (loaded["params"], params)), strict=True):
        assert type(leaf) is type(mine), path
        np.testing.assert_array_equal(aa.to_numpy(leaf), aa.to_numpy(mine))


def train(state: Any, steps: int) -> Any:
    """Train on masked tokens; all random numbers are from the state."""
    order = np.random.default_rng()
    order.bit_generator.state = state["data"]
    for _ in range(steps):
        tokens = TOKENS[order.choice(len(TOKENS), 4, replace=False)]
        step = state["step"] + 1
        result, ctx = MODEL.fwd(state["params"], tokens, rng=state["rng"].fold_in(step))
        logits, of_logits = MODEL.mask_logits_fwd(state["params"], result.states)
        loss, of_loss = aa.cross_entropy_fwd(logits, tokens)
        head = MODEL.mask_logits_bwd(aa.cross_entropy_bwd(np.ones_like(loss), of_loss).logits, of_logits)
        grads = MODEL.bwd(aa.models.BERTResult(head.states, None), ctx, head.params).params
        params, optimizer = optim.adamw(state["params"], grads, state["optimizer"], lr=1e-2)
        state = {**state, "params": params, "optimizer": optimizer, "step": step}
    return {**state, "data": order.bit_generator.state}


def beginning() -> Any:
    params = MODEL.init(aa.Philox(0))
    data = np.random.default_rng(1).bit_generator.state
    return {"params": params, "optimizer": optim.adamw_init(params), "step": 0, "rng": aa.Philox(2), "data": data}


def test_a_run_that_is_resumed_has_the_same_bits(tmp_path: Path) -> None:
    whole = train(beginning(), 6)
    save_state(tmp_path / "run", train(beginning(), 2))
    resumed = train(load_state(tmp_path / "run"), 4)
    same(resumed, whole)
    assert resumed["step"] == resumed["optimizer"].step == 6


def what_loads(path: Path) -> Any:
    """None where the file is found to be damaged."""
    try:
        return load_state(path)
    except ValueError:
        return None


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "run"
    state = {"step": 123, "w": np.arange(5.0), "rng": aa.Philox(9), "b": np.ones(3, np.float16)}
    save_state(path, state)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if (found := what_loads(path)) is not None:
            same(found, state)  # it was in the padding of the header
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        fails(ValueError, f"`{path}` is not a valid safetensors file", lambda: load_state(path))


def test_wrong_states_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    save_state(path, {"step": 1})
    fails(FileNotFoundError, "There is no folder `", lambda: save_state(tmp_path / "none" / "run", {}))
    fails(FileNotFoundError, f"There is no file `{tmp_path / 'none'}`.", lambda: load_state(tmp_path / "none"))
    fails(FileNotFoundError, f"There is no file `{tmp_path}`.", lambda: load_state(tmp_path))
    assert load_state(path) == {"step": 1}
    safetensors_numpy.save_file({"w": np.ones(2)}, path)
    fails(ValueError, "is a safetensors file, but not from save_state.", lambda: load_state(path))
    metadata = {"format": "attnarray.state", "version": "2"}
    safetensors_numpy.save_file({"w": np.ones(2)}, path, metadata=metadata)
    fails(ValueError, "has version 2 of the format, expected 1: it was written by another", lambda: load_state(path))
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda: load_state(path), lambda: save_state(path, {})):
        fails(ModuleNotFoundError, "Install it: pip install 'attnarray[checkpoints]'.", call)

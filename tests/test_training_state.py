"""The state of a training run: the same bits when loaded, whole when the process is killed, checked when read."""

from __future__ import annotations

import collections
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from libraries import Library
from published import fails, safetensors_numpy

import attnarray as aa
from attnarray import optim, tree
from attnarray.checkpoints import load_state, save_state
from attnarray.models import Bert

MODEL = Bert(13, 8, 8, 2, 2, dropout=0.1, attention_dropout=0.1)
TOKENS = np.random.default_rng(0).integers(13, size=(20, 6))


class Moments(NamedTuple):
    mean: np.ndarray
    counts: list[int]


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float
    name: str = "plain"


def same(found: Any, expected: Any) -> None:
    """Equal in types, structure and bits."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, np.ndarray | np.generic):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    else:
        assert repr(found) == repr(expected)


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


def test_other_byte_orders_become_that_of_the_machine(tmp_path: Path) -> None:
    save_state(tmp_path / "run", np.arange(3, dtype=">f8"))
    same(load_state(str(tmp_path / "run")), np.arange(3, dtype="f8"))


def test_classes_of_ones_own_are_given_to_load(tmp_path: Path) -> None:
    state = {"moments": Moments(np.ones(2), [1, 2]), "settings": Settings(0.1)}
    save_state(tmp_path / "run", state)
    same(load_state(tmp_path / "run", types=(Moments, Settings)), state)
    fails(ValueError, "holds a Moments, a class that is not known here. Give it: load_state(path, types=(Moments,)).",
          lambda: load_state(tmp_path / "run"))  # fmt: skip
    other = collections.namedtuple("Moments", ["mean"])
    fails(ValueError, "holds a Moments of mean, counts, but that class has mean: the class has changed",
          lambda: load_state(tmp_path / "run", types=(other, Settings)))  # fmt: skip
    fails(TypeError, "`state` holds two classes called 'Moments', the second at 1: rename one",
          lambda: save_state(tmp_path / "two", [Moments(np.ones(1), []), other(1)]))  # fmt: skip


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
    """So many steps of masked tokens, everything that is random out of the state."""
    order = np.random.default_rng()
    order.bit_generator.state = state["data"]
    for _ in range(steps):
        tokens = TOKENS[order.choice(len(TOKENS), 4, replace=False)]
        step = state["step"] + 1
        result, ctx = MODEL.fwd(state["params"], tokens, rng=state["rng"].fold_in(step))
        logits, of_logits = MODEL.mask_logits_fwd(state["params"], result.states)
        loss, of_loss = aa.cross_entropy_fwd(logits, tokens)
        head = MODEL.mask_logits_bwd(aa.cross_entropy_bwd(np.ones_like(loss), of_loss).logits, of_logits)
        grads = MODEL.bwd(aa.models.BertResult(head.states, None), ctx, head.params).params
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


SAVING = """
import sys, numpy as np
from attnarray.checkpoints import save_state
save_state(sys.argv[1], {"step": 0, "w": np.zeros(300_000)})
print("saved", flush=True)
step = 0
while True:
    step += 1
    save_state(sys.argv[1], {"step": step, "w": np.full(300_000, float(step))})
"""


@pytest.mark.skipif(os.name != "posix", reason="processes are killed by signals")
@pytest.mark.parametrize("wait", [0.0, 0.013, 0.05])
def test_a_killed_process_leaves_a_whole_state(wait: float, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with subprocess.Popen([sys.executable, "-c", SAVING, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(wait)
        process.send_signal(signal.SIGKILL)
    state = load_state(path)
    assert np.all(state["w"] == state["step"])
    left = [other for other in tmp_path.iterdir() if other != path]
    assert len(left) <= 1
    assert all(other.name.startswith("run.safetensors.") and other.suffix == ".partial" for other in left)


KILLED_WITHIN = """
import os, signal, sys, numpy as np
from attnarray.checkpoints import save_state
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], killed)
save_state(sys.argv[1], {"step": 2})
"""


@pytest.mark.skipif(os.name != "posix", reason="processes are killed by signals")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_in_the_middle_of_a_save(moment: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    save_state(path, {"step": 1})
    done = subprocess.run([sys.executable, "-c", KILLED_WITHIN, str(path), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    assert load_state(path) == {"step": 1}
    (aside,) = (other for other in tmp_path.iterdir() if other != path)
    (partial,) = aside.iterdir()
    partial.write_bytes(partial.read_bytes()[:20])
    fails(ValueError, f"`{partial}` is damaged, cut off", lambda: load_state(partial))
    save_state(path, {"step": 3})
    assert load_state(path) == {"step": 3}


def test_a_save_that_fails_leaves_the_last_state_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    save_state(path, {"step": 1})

    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    save_state(tmp_path / "first", {"step": 1})
    (tmp_path / "last").symlink_to(tmp_path / "first")
    save_state(tmp_path / "last", {"step": 2})
    assert (tmp_path / "last").is_symlink()
    assert load_state(tmp_path / "first") == {"step": 2}


def what_loads(path: Path) -> Any:
    """None where the file is found to be damaged."""
    try:
        return load_state(path)
    except ValueError:
        return None


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_are_those_of_any_file(tmp_path: Path) -> None:
    path, plain = tmp_path / "run", tmp_path / "plain"
    plain.write_text("")
    save_state(path, {})
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    save_state(path, {"step": 1})
    assert path.stat().st_mode & 0o777 == 0o640


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "run"
    state = {"step": 123, "w": np.arange(5.0), "rng": aa.Philox(9), "b": np.ones(3, np.float16)}
    save_state(path, state)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if (found := what_loads(path)) is not None:
            same(found, state)  # it was in what pads the header
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        fails(ValueError, f"`{path}` is damaged, cut off or no safetensors file", lambda: load_state(path))


def test_wrong_states_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    save_state(path, {"step": 1})
    wrong: list[tuple[Any, str]] = [
        ({"data": {"file": sys}}, "at data.file, a module, which cannot be saved. Give arrays, numbers"),
        ({"rng": np.random.default_rng(0)}, "at rng, a Generator, which cannot be saved."),
        ([np.array(["a"])], "holds an array of shape (1,) and dtype str32 at 0, expected a dtype of float16"),
        ({"a": {1.5: 2}}, "`state` has the key 1.5 at a, expected texts or integers."),
        ([{1, 2}], "holds {1, 2} at 0, a set, which cannot be saved."),
        (np.ones(2, complex), "dtype complex128 at the root, expected a dtype of"),
    ]
    for state, expected in wrong:
        fails(TypeError, expected, lambda state=state: save_state(path, state))
    fails(FileNotFoundError, "There is no folder `", lambda: save_state(tmp_path / "none" / "run", {}))
    fails(FileNotFoundError, f"There is no file `{tmp_path / 'none'}`.", lambda: load_state(tmp_path / "none"))
    fails(FileNotFoundError, f"There is no file `{tmp_path}`.", lambda: load_state(tmp_path))
    assert load_state(path) == {"step": 1}
    safetensors_numpy.save_file({"w": np.ones(2)}, path)
    fails(ValueError, "is a file of tensors, but none that save_state wrote.", lambda: load_state(path))
    metadata = {"format": "attnarray.state", "version": "2"}
    safetensors_numpy.save_file({"w": np.ones(2)}, path, metadata=metadata)
    fails(ValueError, "has version 2 of the format, expected 1: it was written by another", lambda: load_state(path))
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda: load_state(path), lambda: save_state(path, {})):
        fails(ModuleNotFoundError, "Install it: pip install 'attnarray[checkpoints]'.", call)

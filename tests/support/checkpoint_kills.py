"""Save a model or a state repeatedly, each time killed before a later system call, and load what is left. This is
a program, because it forks.

    python checkpoint_kills.py SCENARIO FOLDER

Prints the number of kills. What is left must be the old or the new one, bit for bit.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import attnarray as aa
from attnarray import tree
from attnarray.checkpoints import load_state, save_pretrained, save_state
from attnarray.models import GPT

CALLS = {
    os: (
        "open",
        "write",
        "fsync",
        "close",
        "replace",
        "rename",
        "unlink",
        "remove",
        "mkdir",
        "link",
        "fchmod",
        "chmod",
    ),
    fcntl: ("flock",),
}
OLD = GPT(11, 8, 8, 1, 2)
NEW = GPT(11, 8, 8, 1, 4, 12, positions="rotary", norm="rms", activation="silu", gated=True, bias=False)
FOLLOWING = GPT(11, 8, 8, 1, 4)  # OLD with other heads: other numbers, equal shapes


def killed_at(count: int, save: Callable[[], None], within: bool) -> bool:
    """Whether a child was killed before its call number `count`, or within its write number `count`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = count

    def counted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if within and name != "write":
                return function(*arguments, **options)
            if left == 0:
                if within:
                    function(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os._exit(9)
            left -= 1
            return function(*arguments, **options)

        return call

    for module, names in CALLS.items():
        for name in names:
            setattr(module, name, counted(getattr(module, name), name))
    try:
        save()
    except BaseException:
        os._exit(1)
    os._exit(0)


def kill_everywhere(prepare: Callable[[], None], save: Callable[[], None], check: Callable[[bool], None]) -> int:
    """Kill a save at each of its system calls after `prepare`, and `check` what is left; return the number of kills."""
    kills = 0
    for within in (False, True):
        for count in range(10_000):
            prepare()
            killed = killed_at(count, save, within)
            check(not killed)
            save()  # over what is left
            check(True)
            kills += killed
            if not killed:
                break
        else:
            raise AssertionError("no end of calls")
    return kills


def the_same(found: tuple[Any, Any], model: Any, params: Any) -> bool:
    (again, loaded), flat = found, tree.flatten(params)
    return again.shapes() == model.shapes() and again.num_heads == model.num_heads and all(
        path == other and np.array_equal(a, b) for (path, a), (other, b) in zip(tree.flatten(loaded), flat, strict=True)
    )  # fmt: skip


def old_model(place: Path, scenario: str, params: Any) -> None:
    """Prepare a folder with OLD for the scenario."""
    shutil.rmtree(place.parent, ignore_errors=True)
    if scenario == "nothing":
        return
    config, weights = place / "config.json", place / "model.safetensors"
    save_pretrained(place, OLD, params)
    (place / "tokenizer.json").write_text("{}")
    if scenario in ("foreign", "parts", "links"):
        save_file(load_file(weights), weights)
        content = json.loads(config.read_text())
        config.write_text(json.dumps({name: content[name] for name in content if name != "attnarray_save"}))
    if scenario == "edited":
        config.write_text(config.read_text().replace("{", "{ ", 1))
    if scenario == "parts":
        part, tensors = "model-00001-of-00001.safetensors", load_file(weights)
        weights.rename(place / part)
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, part)}))
    if scenario == "links":
        (place.parent / "there").mkdir()
        for path in (config, weights):
            path.rename(place.parent / "there" / path.name)
            path.symlink_to(place.parent / "there" / path.name)
    if scenario == "killed before":  # weights of FOLLOWING, config.json of OLD
        before = config.read_bytes()
        save_pretrained(place, FOLLOWING, params)
        config.write_bytes(before)


def models(folder: Path, scenario: str) -> int:
    """Kill saves of a model; return the number of kills."""
    new, before = FOLLOWING if scenario == "same shapes" else NEW, FOLLOWING if scenario == "killed before" else OLD
    params = {"old": OLD.init(aa.Philox(1)), "new": new.init(aa.Philox(2))}
    place = folder / "inner" / "model"

    def check(done: bool) -> None:
        try:
            found = GPT.from_pretrained(place)
        except FileNotFoundError:
            assert scenario == "nothing"
            assert not done
            return
        assert the_same(found, new, params["new"]) or (not done and the_same(found, before, params["old"]))
        if done:
            names = {path.name for path in place.iterdir()}
            assert names - {"tokenizer.json"} == {"config.json", "model.safetensors"}, names
            assert ("tokenizer.json" in names) == (scenario != "nothing")
            assert all(
                (place / name).is_symlink() == (scenario == "links") for name in ("config.json", "model.safetensors")
            )

    def prepare() -> None:
        old_model(place, scenario, params["old"])

    return kill_everywhere(prepare, lambda: save_pretrained(place, new, params["new"]), check)


def states(folder: Path) -> int:
    """Kill saves of a state; return the number of kills."""
    path = folder / "run"
    old, new = ({"step": n, "w": np.full(50, n), "optimizer": aa.optim.sgd_init([np.full(9, n)])} for n in (1.0, 2.0))

    def check(done: bool) -> None:
        found = load_state(path)
        n = found["step"]
        assert n in ((2.0,) if done else (1.0, 2.0))
        assert np.all(found["w"] == n)
        assert np.all(found["optimizer"].velocity[0] == 0)
        assert not done or [other.name for other in folder.iterdir()] == ["run"]

    return kill_everywhere(lambda: save_state(path, old), lambda: save_state(path, new), check)


def together(folder: Path) -> int:
    """Two processes save different models and states to the same paths, while this one loads them."""
    pairs = [(model, model.init(aa.Philox(n))) for n, model in enumerate((OLD, FOLLOWING))]
    place, path = folder / "model", folder / "run"
    children = []
    for n, (model, params) in enumerate(pairs):
        save_pretrained(place, model, params)
        save_state(path, {"n": n, "w": np.full(99, n)})
        if (child := os.fork()) == 0:
            try:
                for _ in range(40):
                    save_pretrained(place, model, params)
                    save_state(path, {"n": n, "w": np.full(99, n)})
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        children.append(child)
    for child in children:
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            found, state = GPT.from_pretrained(place), load_state(path)
            assert any(the_same(found, *pair) for pair in pairs)
            assert np.all(state["w"] == state["n"])
            if ended:
                assert status == 0
                break
    assert sorted(one.name for one in folder.iterdir()) == ["model", "run"]
    assert sorted(one.name for one in place.iterdir()) == ["config.json", "model.safetensors"]
    return 0


if __name__ == "__main__":
    os.fsync = lambda _: None  # needed only after a power failure, and most of the time
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    run = {"state": states, "together": together}.get(scenario, lambda folder: models(folder, scenario))
    print(f"killed {run(folder)} times")

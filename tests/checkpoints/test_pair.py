"""The two files of a model are consistent, whatever else is or was in their folder."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.checkpoints import save_pretrained
from attnarray.models import BERT, GPT
from tests.support.libraries import assert_trees_close
from tests.support.published import PARAMS, fails, rewrite, saved, shard, tensors_of

MODEL, OTHER = GPT(11, 8, 8, 1, 2), GPT(11, 8, 8, 1, 4)  # other numbers, equal shapes


def config_of(folder: Path, **changes: Any) -> None:
    """Change the config.json of a folder."""
    content = json.loads((folder / "config.json").read_text())
    changed = {name: value for name, value in {**content, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(changed))


def test_which_configuration_belongs_to_the_weights(tmp_path: Path) -> None:
    save_pretrained(tmp_path, OTHER, OTHER.init(aa.Philox(0)))
    before = (tmp_path / "config.json").read_bytes()
    save_pretrained(tmp_path, MODEL, MODEL.init(aa.Philox(0)))
    assert GPT.from_pretrained(tmp_path)[0] == MODEL
    config_of(tmp_path, n_head=1)  # changed by hand
    assert GPT.from_pretrained(tmp_path)[0].num_heads == 1
    config_of(tmp_path, n_head=8, attnarray_save="absent")  # replaced by another program
    assert GPT.from_pretrained(tmp_path)[0].num_heads == 8
    config_of(tmp_path, attnarray_save="of another save")
    assert GPT.from_pretrained(tmp_path)[0] == MODEL
    (tmp_path / "config.json").write_bytes(before)
    assert GPT.from_pretrained(tmp_path)[0] == MODEL
    (tmp_path / "config.json").unlink()
    fails(FileNotFoundError, "There is no file `", lambda: GPT.from_pretrained(tmp_path))


def test_a_save_that_fails_between_the_files_leaves_the_new_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, replace = tmp_path / "config.json", os.replace

    def fail(one: Path, other: Path) -> None:
        replace(one, tmp_path / "none" / "x" if other == config else other)

    for before in (json.dumps({"model_type": "bert"}), "no JSON"):
        config.write_text(before)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(OSError, match="No such file") as caught:
                save_pretrained(tmp_path, MODEL, MODEL.init(aa.Philox(0)))
        assert caught.value.filename == str(config)
        assert config.read_text() == before
        assert GPT.from_pretrained(tmp_path)[0] == MODEL


@pytest.mark.skipif(os.name != "posix", reason="folders are opened")
def test_files_are_synced_before_they_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rename is also synced before the next, so that a power failure is like being killed."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def rename(one: Path, other: Path) -> None:
        calls.append(other.name)
        replace(one, other)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    saved(tmp_path)
    assert calls == ["file", "file", "model.safetensors", "folder", "config.json", "folder"]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two", "one"):
        saved(tmp_path / name)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_other_files_in_the_folder(tmp_path: Path) -> None:
    shard(saved(tmp_path))
    others = ["tokenizer.json", "pytorch_model.bin", "generation_config.json", "model-00001-of-00002.safetensors.old"]
    for name in others:
        (tmp_path / name).write_text("{}")
    params = BERT.from_pretrained(tmp_path)[1]
    assert_trees_close(params, PARAMS, 0)
    saved(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "config.json", "model.safetensors"])
    for wrong in ("no JSON", "[]", '{"weight_map": {"a": [1], "b": "../out.safetensors"}}'):
        (tmp_path / "model.safetensors.index.json").write_text(wrong)
        saved(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "config.json", "model.safetensors"])


def test_a_single_file_takes_precedence_over_shards_as_in_transformers(tmp_path: Path) -> None:
    tensors = tensors_of(saved(tmp_path))
    shard(tmp_path)
    rewrite_to = tmp_path / "model.safetensors"
    aa.checkpoints.files.write_tensors(rewrite_to, tensors, {})
    rewrite(tmp_path, lambda tensors: {**tensors, "bert.pooler.dense.bias": np.full(6, 7, np.float32)})
    assert np.all(BERT.from_pretrained(tmp_path)[1]["pooler"]["bias"] == 7)


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_links_of_a_model_stay_links(tmp_path: Path) -> None:
    saved(tmp_path / "first")
    (tmp_path / "last").symlink_to(tmp_path / "first")
    save_pretrained(tmp_path / "last", MODEL, MODEL.init(aa.Philox(0)))
    assert (tmp_path / "last").is_symlink()
    assert GPT.from_pretrained(tmp_path / "first")[0] == MODEL
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "model.safetensors").symlink_to(tmp_path / "first" / "model.safetensors")
    save_pretrained(tmp_path / "file", OTHER, OTHER.init(aa.Philox(0)))
    assert (tmp_path / "file" / "model.safetensors").is_symlink()
    assert GPT.from_pretrained(tmp_path / "file")[0] == OTHER


def test_a_folder_in_place_of_a_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    fails(IsADirectoryError, f"`{tmp_path / 'config.json'}` is a folder", lambda: saved(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        saved(tmp_path / "file")


def test_wrong_options(tmp_path: Path) -> None:
    saved(tmp_path)
    for ignore in (None, 3, b"cls.", (1,), "", ("cls.", "")):
        fails(TypeError, "`ignore` is ", lambda ignore=ignore: BERT.from_pretrained(tmp_path, ignore=ignore))
    for dtype in ("int8", np.int64, "bool"):
        fails(ValueError, "expected one of 'float16', 'bfloat16', 'float32', 'float64'.",
              lambda dtype=dtype: BERT.from_pretrained(tmp_path, dtype=dtype))  # fmt: skip
    assert BERT.from_pretrained(tmp_path, dtype=np.float16)[1]["token"]["weight"].dtype == np.float16

"""Sharded optimizers equal one process; their checkpoints resume on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import optim, tree
from attnarray.distributed import RankError, ThreadComm, load_sharded, save_sharded, sharded_init, sharded_update
from attnarray.distributed.training import element_ranges
from tests.support.libraries import Library

MODEL = aa.models.GPT(vocab_size=17, max_seq_len=6, dim=8, num_layers=1, num_heads=2)
TOKENS = np.random.default_rng(0).integers(17, size=(8, 12, 7))  # steps, batch, T + 1
OPTIONS = {"lr": 1e-2, "weight_decay": 0.1}


def gradients(params: Any, tokens: np.ndarray) -> tuple[float, Any]:
    logits, ctx = MODEL.fwd(params, tokens[:, :-1])
    loss, loss_ctx = aa.cross_entropy_fwd(logits, tokens[:, 1:])
    return float(loss), MODEL.bwd(aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, ctx).params


def train_alone(steps: range, params: Any, state: Any, max_norm: float | None = None) -> tuple[list[float], Any, Any]:
    losses = []
    for step in steps:
        loss, grads = gradients(params, TOKENS[step])
        losses.append(loss)
        grads = grads if max_norm is None else optim.clip_by_global_norm(grads, max_norm)[0]
        params, state = optim.adamw(params, grads, state, **OPTIONS)
    return losses, params, state


def train(comm: Any, steps: range, params: Any, state: Any, **options: Any) -> tuple[list[float], Any, Any]:
    rank, size = comm.Get_rank(), comm.Get_size()
    losses = []
    for step in steps:
        loss, grads = gradients(params, TOKENS[step][rank::size])
        losses.append(sum(comm.allgather(loss)) / size)
        params, state = sharded_update(comm, params, grads, state, **OPTIONS, **options)
    return losses, params, state


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_training_equals_one_process(size: int, max_norm: float | None) -> None:
    params = MODEL.init(aa.Philox(0), "float64")
    losses, expected, _ = train_alone(range(5), params, optim.adamw_init(params), max_norm)
    found = ThreadComm(size).run(
        lambda comm: train(comm, range(5), params, sharded_init(comm, params), max_norm=max_norm)
    )
    for own_losses, own, state in found:
        np.testing.assert_allclose(own_losses, losses, rtol=1e-9)  # roundings, which Adam enlarges for tiny gradients
        for (path, a), (_, b) in zip(tree.flatten(own), tree.flatten(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-8, err_msg=tree.format_path(path))
        for (_, a), (_, b) in zip(tree.flatten(own), tree.flatten(found[0][1]), strict=True):
            np.testing.assert_array_equal(a, b)  # the same bits on every rank
        assert state.step == 5


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_each_element_has_one_rank(size: int) -> None:
    params = {"a": np.zeros((3, 5)), "b": {"c": np.zeros(()), "d": np.zeros((0, 4)), "e": np.zeros(88)}}
    found = element_ranges(params, size)
    counts = [sum(r.stop - r.start for r in own) for own in found]
    assert sum(counts) == 104
    assert max(counts) - min(counts) <= 1
    marks = tree.map(np.zeros_like, params)
    for path, start, stop in (r for own in found for r in own):
        tree.get(marks, path).reshape(-1)[start:stop] += 1
    assert all(leaf.min(initial=1) == leaf.max(initial=1) == 1 for _, leaf in tree.flatten(marks))


def test_the_state_is_divided() -> None:
    params = MODEL.init(aa.Philox(0))
    whole = tree.nbytes(optim.adamw_init(params))
    sizes = [tree.nbytes(state) for state in ThreadComm(4).run(sharded_init, params)]
    assert sum(sizes) == whole
    assert max(sizes) <= whole / 4 + 8


def test_every_array_library(library: Library) -> None:
    params = {"w": library.array(np.arange(5.0), "float32"), "b": library.array(np.ones((2, 2)), "float32")}

    def step(comm: Any) -> Any:
        grads = tree.map(lambda leaf: leaf * 0 + float(comm.rank + 1), params)
        state = sharded_init(comm, params, optim.sgd_init)
        return sharded_update(comm, params, grads, state, optim.sgd, reduction="sum", lr=0.5)[0]

    for found in ThreadComm(3).run(step):
        assert type(found["w"]) is type(params["w"])
        np.testing.assert_array_equal(aa.to_numpy(found["w"]), np.arange(5.0) - 3)
        np.testing.assert_array_equal(aa.to_numpy(found["b"]), np.full((2, 2), -2.0))


@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 1), (1, 4), (3, 3)])
def test_training_resumes_on_another_number_of_ranks(before: int, after: int, tmp_path: Path) -> None:
    params = MODEL.init(aa.Philox(0), "float64")
    losses, _, _ = train_alone(range(6), params, optim.adamw_init(params))

    def begin(comm: Any) -> None:
        _, own, state = train(comm, range(2), params, sharded_init(comm, params))
        save_sharded(tmp_path, comm, own, state, 1)
        _, own, state = train(comm, range(2, 4), own, state)
        save_sharded(tmp_path, comm, own, state, 3)

    def resume(comm: Any) -> list[float]:
        own, state, step = load_sharded(tmp_path, comm, MODEL.init(aa.Philox(9), "float64"))
        assert step == 3
        return train(comm, range(4, 6), own, state)[0]

    ThreadComm(before).run(begin)
    assert len(list(tmp_path.iterdir())) == before + 1  # of the last checkpoint, and its index
    for found in ThreadComm(after).run(resume):
        np.testing.assert_allclose(found, losses[4:], rtol=1e-9)


def test_an_incomplete_checkpoint_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnarray.distributed import checkpoint

    params, save = {"w": np.arange(6.0)}, checkpoint.save_state

    def on_rank(comm: Any, step: int) -> None:
        save_sharded(tmp_path, comm, {"w": params["w"] + step}, sharded_init(comm, params), step)

    ThreadComm(2).run(on_rank, 5)

    def failing(path: Path, part: Any) -> None:
        if "rank-1" in path.name:
            raise OSError("the disk is full")
        save(path, part)

    monkeypatch.setattr(checkpoint, "save_state", failing)

    def fails(comm: Any) -> None:
        with pytest.raises(OSError if comm.rank == 1 else RankError, match="the disk is full"):
            on_rank(comm, 6)

    ThreadComm(2).run(fails)
    found, _, step = ThreadComm(1).run(lambda comm: load_sharded(tmp_path, comm, params))[0]
    assert step == 5
    np.testing.assert_array_equal(found["w"], params["w"] + 5)


def test_wrong_input() -> None:
    params = {"w": np.ones(4)}

    def on_rank(comm: Any) -> None:
        state = sharded_init(comm, params)
        with pytest.raises(ValueError, match="`options` differs between ranks"):
            sharded_update(comm, params, params, state, lr=0.1 * (comm.rank + 1))
        own = {"w": np.ones(4 + comm.rank)}
        with pytest.raises(ValueError, match="`params` differs between ranks"):
            sharded_update(comm, own, own, state, lr=0.1)
        error = ValueError if comm.rank == 1 else RankError
        with pytest.raises(error, match="`grads` has shape"):
            sharded_update(comm, params, {"w": np.ones(3)} if comm.rank == 1 else params, state, lr=0.1)
        with pytest.raises(ValueError, match="`reduction` is 'max', expected one of 'mean', 'sum'"):
            sharded_update(comm, params, params, state, lr=0.1, reduction="max")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"`params.w` has dtype int64"):
            sharded_init(comm, {"w": np.ones(3, int)})

    ThreadComm(2).run(on_rank)


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    params = {"w": np.ones(4)}

    def on_rank(comm: Any) -> None:
        with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
            load_sharded(tmp_path, comm, params)
        save_sharded(tmp_path, comm, params, sharded_init(comm, params), 2)
        with pytest.raises(ValueError, match=r"`step` is 2, but .* has a checkpoint of this step already"):
            save_sharded(tmp_path, comm, params, sharded_init(comm, params), 2)
        with pytest.raises(ValueError, match=r"is not what was saved in .*: it differs at w"):
            load_sharded(tmp_path, comm, {"w": np.ones(5)})

    ThreadComm(1).run(on_rank)


def test_more_ranks_than_elements(tmp_path: Path) -> None:
    params = {"w": np.ones(2)}

    def on_rank(comm: Any) -> list[float]:
        state = sharded_init(comm, params)
        save_sharded(tmp_path, comm, params, state, 0)
        own, state, _ = load_sharded(tmp_path, comm, params)
        return sharded_update(comm, own, params, state, optim.adamw, lr=0.5, weight_decay=0.0)[0]["w"].tolist()

    np.testing.assert_allclose(ThreadComm(4).run(on_rank), [[0.5, 0.5]] * 4, rtol=1e-7)  # eps of Adam

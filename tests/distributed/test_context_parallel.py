"""Models whose sequences are divided among ranks: logits, gradients and training steps are those of one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import optim, tree
from attnarray.distributed import (
    ContextParallel,
    RankError,
    ThreadComm,
    grid,
    join_sequence,
    sharded_init,
    sharded_update,
)
from tests.support.context_calls import MODELS, B, T, V, gradients, make_call, whole_gradients
from tests.support.tiers import first

SIZES: list[Any] = first(2, [(3, "zigzag", "ring"), (2, "contiguous", "all_to_all"), (1, "zigzag", "ring")])
TOKENS = np.random.default_rng(3).integers(V, size=(B, T + 1))


def summed(parts: list[Any]) -> Any:
    return tree.map(lambda *leaves: sum(leaves), *parts)


@pytest.mark.parametrize(("size", "order", "method"), SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_ranks_equal_one_process(name: str, size: int, order: Any, method: Any) -> None:
    call = make_call(name)
    logits, grads = whole_gradients(call)
    results = ThreadComm(size).run(lambda comm: gradients(call, ContextParallel(comm, order, method)))
    found = join_sequence([own for own, _ in results], order=order, axis=1)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-12)
    for (path, a), (_, b) in zip(tree.flatten(summed([g for _, g in results])), tree.flatten(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12, err_msg=tree.format_path(path))


def test_a_grid_of_ranks() -> None:
    call = make_call("llama")
    logits, _ = whole_gradients(call)
    run = lambda comm: gradients(call, ContextParallel(grid(comm, 2), method="all_to_all"))[0]  # noqa: E731
    found = join_sequence(ThreadComm(4).run(run), order="zigzag", axis=1)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-12)


def step_gradients(model: Any, params: Any, tokens: np.ndarray, targets: np.ndarray, parallel: Any = None) -> Any:
    logits, ctx = model.fwd(params, tokens, context_parallel=parallel)
    loss, loss_ctx = aa.cross_entropy_fwd(logits, targets)
    return float(loss), model.bwd(aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, ctx).params


def test_steps_with_parts_of_batch_and_sequence_equal_one_process() -> None:
    """Two pairs of ranks: a pair has half of the batch, each of its ranks half of the positions."""
    model, steps = MODELS["gpt2"][0], 4
    params = model.init(aa.Philox(0), "float64")
    tokens, targets = TOKENS[:, : T - 1], TOKENS[:, 1:T]  # equal parts, so that means of parts have the mean of all
    state, own, losses = optim.adamw_init(params), params, []
    for _ in range(steps):
        loss, grads = step_gradients(model, own, tokens, targets)
        losses.append(loss)
        own, state = optim.adamw(own, grads, state, lr=1e-2)

    def on_rank(comm: Any) -> tuple[list[float], Any]:
        half, found, mine = comm.Get_rank() // 2, [], params
        parallel = ContextParallel(comm.Split(half, comm.Get_rank()))
        rows, sharded = slice(half, None, 2), sharded_init(comm, params)
        x, y = (parallel.split(part[rows]) for part in (tokens, targets))
        for _ in range(steps):
            loss, grads = step_gradients(model, mine, x, y, parallel)
            found.append(sum(comm.allgather(loss)) / comm.Get_size())
            mine, sharded = sharded_update(comm, mine, grads, sharded, lr=1e-2)
        return found, mine

    for found, mine in ThreadComm(4).run(on_rank):
        np.testing.assert_allclose(found, losses, rtol=1e-9)  # roundings, which Adam enlarges for tiny gradients
        for (path, a), (_, b) in zip(tree.flatten(mine), tree.flatten(own), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-8, err_msg=tree.format_path(path))


def test_dropout_of_weights_is_that_of_one_process_and_of_branches_independent() -> None:
    model = aa.models.GPT(V, T, 8, 1, 2, attention_dropout=0.4)
    params, x = model.init(aa.Philox(0), "float64"), TOKENS[:, :T]
    alone = model.fwd(params, x, rng=aa.Philox(5))[0]

    def on_rank(comm: Any) -> Any:
        parallel = ContextParallel(comm)
        return model.fwd(params, parallel.split(x), rng=aa.Philox(5), context_parallel=parallel)[0]

    found = join_sequence(ThreadComm(3).run(on_rank), order="zigzag", axis=1)
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-12)
    dropping = aa.models.GPT(V, T, 8, 1, 2, dropout=0.5, positions="none")

    def embedded(comm: Any) -> Any:
        own = np.zeros((1, 4), int)
        _, ctx = dropping.fwd(params, own, rng=aa.Philox(5), context_parallel=ContextParallel(comm))
        return ctx.embedding.dropout.seed

    params = dropping.init(aa.Philox(0))
    assert len(set(ThreadComm(3).run(embedded))) == 3


def test_an_encoder_attends_to_all_positions() -> None:
    encoder = aa.models.Encoder(8, 2, 2, rotary=aa.Rotary())
    params, x = encoder.init(aa.Philox(0), "float64"), np.random.default_rng(0).standard_normal((2, 11, 8))
    expected = encoder(params, x, kv_lengths=np.array([11, 6]))

    def on_rank(comm: Any) -> Any:
        parallel = ContextParallel(comm, "contiguous")
        return encoder(params, parallel.split(x), kv_lengths=np.array([11, 6]), context_parallel=parallel)

    np.testing.assert_allclose(join_sequence(ThreadComm(3).run(on_rank), axis=1), expected, rtol=0, atol=1e-12)


def test_cross_attention_with_an_offset() -> None:
    layer = aa.layers.MultiHeadAttention(8, 2, rotary=aa.Rotary())
    params, rng = layer.init(aa.Philox(0), "float64"), np.random.default_rng(0)
    x, z, offset = rng.standard_normal((2, 7, 8)), rng.standard_normal((2, 9, 8)), np.array([2, 0])
    for q_offset in (3, offset):
        expected = layer(params, x, z, q_offset=q_offset)

        def on_rank(comm: Any, q_offset: Any = q_offset) -> Any:
            parallel = ContextParallel(comm)
            own = parallel.split(x), parallel.split(z)
            return layer(params, *own, q_offset=q_offset, context_parallel=parallel)

        found = join_sequence(ThreadComm(3).run(on_rank), order="zigzag", axis=1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_wrong_input() -> None:
    model = aa.models.GPT(V, T, 8, 1, 2)
    params, tokens = model.init(aa.Philox(0)), TOKENS[:, :4]
    with pytest.raises(ValueError, match="`method` is 'rings', expected one of 'ring', 'all_to_all'"):
        ContextParallel(ThreadComm(2), method="rings")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`order` is 'zag'"):
        ContextParallel(None, order="zag")  # type: ignore[arg-type]

    def on_rank(comm: Any) -> None:
        rank, parallel = comm.Get_rank(), ContextParallel(comm)
        error = ValueError if rank == 1 else RankError
        with pytest.raises(error, match="`tokens`"):
            model(params, tokens + (V if rank == 1 else 0), context_parallel=parallel)
        with pytest.raises(error, match="`starts` is given with `context_parallel`"):
            model(params, tokens, starts=[0] * B if rank == 1 else None, context_parallel=parallel)
        with pytest.raises(ValueError, match="`tokens` needs 30 positions"):
            model(params, np.zeros((1, 10), int), context_parallel=parallel)
        with pytest.raises(ValueError, match="expected 0 to 12"):
            model(params, tokens, lengths=[13] * B, context_parallel=parallel)
        with pytest.raises(ValueError, match="`order` differs between ranks"):
            model(params, tokens, context_parallel=ContextParallel(comm, "zigzag" if rank else "contiguous"))
        linear = aa.models.GPT(V, T, 8, 1, 2, mixers=("gla",), positions="none")
        with pytest.raises(ValueError, match="`context_parallel` is given, but the block has mixer='gla'"):
            linear(linear.init(aa.Philox(0)), tokens, context_parallel=parallel)
        logits, ctx = model.fwd(params, tokens, context_parallel=parallel)
        attention = ctx.body.blocks[0].attention.branch
        with pytest.raises(ValueError, match="`dweights` is given, but no process has all weights"):
            aa.multi_head_attention_bwd(np.ones((B, 4, 8), np.float32), attention, dweights=logits)
        with pytest.raises(TypeError, match="expected the context"):
            aa.attention_weights(attention)

    ThreadComm(3).run(on_rank)

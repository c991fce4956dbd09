"""A GPT is trained on several processes: each has a part of every batch and of the optimizer's state.

    mpiexec -n 4 python -m mpi4py docs/examples/data_parallel.py [--context-ranks N] [--steps N] [--folder FOLDER]

It takes less than a minute on one core. With --context-ranks 2, two processes share sequences, by ring attention. The
loss curve is that of one process. With a folder, the run is saved there every ten steps, by safetensors, and goes on
from there, on any number of processes. Needs an MPI: that of the machine, or pip install mpich.

Needs: attnarray, mpi4py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import attnarray as aa
from attnarray.distributed import ContextParallel, load_sharded, save_sharded, sharded_init, sharded_update

MODEL = aa.models.GPT(vocab_size=256, max_seq_len=64, dim=32, num_layers=2, num_heads=4)
TEXT = np.frombuffer(Path(np.__file__).read_bytes(), np.uint8)[:20_000].astype(np.int64)
BATCH, LENGTH, SAVED_EVERY = 12, 32, 10  # pieces of text, their tokens, steps


def train(comm: Any, steps: int, folder: Path | None = None, context_ranks: int = 1) -> list[float]:
    """The loss of each step, in which every rank has its part of the batch, and of sequences with `context_ranks`."""
    groups, group = comm.Get_size() // context_ranks, comm.Get_rank() // context_ranks
    if comm.Get_size() % context_ranks or BATCH % groups or LENGTH % (2 * context_ranks):
        raise ValueError(f"{BATCH} x {LENGTH} tokens cannot be divided among {groups} x {context_ranks} ranks.")
    parallel = ContextParallel(comm.Split(group, comm.Get_rank()))
    params, first = MODEL.init(aa.Philox(0)), 0
    state = sharded_init(comm, params)
    if folder is not None and (folder / "checkpoint.json").exists():
        params, state, first = load_sharded(folder, comm, params)
    losses = []
    for step in range(first, steps):
        starts = np.random.default_rng(step).integers(0, len(TEXT) - LENGTH - 1, size=BATCH)[group::groups]
        batch = np.stack([TEXT[start : start + LENGTH + 1] for start in starts])
        tokens, targets = parallel.split(batch[:, :-1]), parallel.split(batch[:, 1:])
        logits, ctx = MODEL.fwd(params, tokens, context_parallel=parallel)
        loss, loss_ctx = aa.cross_entropy_fwd(logits, targets)
        grads = MODEL.bwd(aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, ctx).params
        params, state = sharded_update(comm, params, grads, state, lr=3e-3, max_norm=1.0)
        losses.append(float(np.mean(comm.allgather(float(loss)))))
        if comm.Get_rank() == 0:
            print(f"step {step}: {losses[-1]:.6f}", flush=True)
        if folder is not None and (step + 1) % SAVED_EVERY == 0:
            save_sharded(folder, comm, params, state, step + 1)
    return losses


if __name__ == "__main__":
    from mpi4py import MPI

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--context-ranks", type=int, default=1, help="how many ranks share a sequence")
    arguments = parser.parse_args()
    train(MPI.COMM_WORLD, arguments.steps, arguments.folder, arguments.context_ranks)

"""A GPT is trained on several processes: each has a part of every batch and of the optimizer's state.

    mpiexec -n 4 python -m mpi4py docs/examples/data_parallel.py [--steps N] [--folder FOLDER]

The loss curve is that of one process. With a folder, the run is saved there every ten steps, and goes on from there, on
any number of processes. Needs an MPI: that of the machine, or pip install mpich.

Needs: attnarray, mpi4py, safetensors.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import attnarray as aa
from attnarray.distributed import sharded_init, sharded_update
from attnarray.distributed.checkpoint import load_sharded, save_sharded

MODEL = aa.models.GPT(vocab_size=256, max_seq_len=64, dim=32, num_layers=2, num_heads=4)
TEXT = np.frombuffer(Path(np.__file__).read_bytes(), np.uint8)[:20_000].astype(np.int64)
BATCH, SAVED_EVERY = 12, 10  # pieces of text, steps


def train(comm: Any, steps: int, folder: Path | None = None) -> list[float]:
    """The loss of each step, in which every rank has its part of the batch."""
    rank, size = comm.Get_rank(), comm.Get_size()
    if BATCH % size:
        raise ValueError(f"A batch of {BATCH} cannot be divided among {size} ranks: use 1, 2, 3, 4, 6 or 12.")
    params, first = MODEL.init(aa.Philox(0)), 0
    state = sharded_init(comm, params)
    if folder is not None and (folder / "checkpoint.json").exists():
        params, state, first = load_sharded(folder, comm, params)
    losses = []
    for step in range(first, steps):
        starts = np.random.default_rng(step).integers(0, len(TEXT) - 33, size=BATCH)[rank::size]
        batch = np.stack([TEXT[start : start + 33] for start in starts])
        logits, ctx = MODEL.fwd(params, batch[:, :-1])
        loss, loss_ctx = aa.cross_entropy_fwd(logits, batch[:, 1:])
        grads = MODEL.bwd(aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, ctx).params
        params, state = sharded_update(comm, params, grads, state, lr=3e-3, max_norm=1.0)
        losses.append(float(np.mean(comm.allgather(float(loss)))))
        if rank == 0:
            print(f"step {step}: {losses[-1]:.6f}", flush=True)
        if folder is not None and (step + 1) % SAVED_EVERY == 0:
            save_sharded(folder, comm, params, state, step + 1)
    return losses


if __name__ == "__main__":
    from mpi4py import MPI

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    train(MPI.COMM_WORLD, arguments.steps, arguments.folder)

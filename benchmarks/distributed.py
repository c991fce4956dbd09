"""Attention on many processes: time, bytes and messages, and memory of each rank; arrays larger than memory; kills.

    python -m benchmarks.distributed ring --ranks 1 2 4 --output NAME     # time, bytes and messages of each rank
    python -m benchmarks.distributed link --output NAME                   # latency and bandwidth of two ranks
    python -m benchmarks.distributed memory --output NAME                 # T 65,536 on 4 ranks and T 16,384 on 1
    python -m benchmarks.distributed dask --output NAME                   # 8 GB of keys, workers limited to 2 GB
    python -m benchmarks.distributed workers --output NAME                # time with 1, 2 and 4 workers of Dask
    python -m benchmarks.distributed kills --output NAME                  # 20 workers killed at random moments

Each writes results/NAME.json. Ranks are started by mpiexec, with one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa
from attnarray.bench import memory
from attnarray.distributed import (
    all_to_all_attention_bwd,
    all_to_all_attention_fwd,
    ring_attention_bwd,
    ring_attention_fwd,
)
from attnarray.distributed.sequence import part_lengths

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MESSAGES = {"forward": 0, "backward": 0}


class Case(NamedTuple):
    """Causal self-attention in float32."""

    function: str = "ring"
    order: str = "zigzag"
    T: int = 8192
    heads: int = 4
    dim: int = 64
    repeats: int = 3


class Counting:
    """A communicator that counts what is sent."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.bytes = self.messages = self.rounds = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> Any:
        self.bytes += buf.nbytes
        self.messages += 1
        return self._comm.Isend(buf, dest, tag)

    def allgather(self, sendobj: Any, /) -> Any:
        self.rounds += 1
        return self._comm.allgather(sendobj)

    def take(self) -> dict[str, int]:
        """The counts since the last call."""
        found = {"bytes": self.bytes, "messages": self.messages, "rounds": self.rounds}
        self.bytes = self.messages = self.rounds = 0
        return found


def on_rank(case: Case, with_memory: bool) -> None:
    """What mpiexec starts: measure one case, and print the results of all ranks on rank 0."""
    from mpi4py import MPI

    comm = Counting(MPI.COMM_WORLD)
    rank, size = comm.Get_rank(), comm.Get_size()
    T = part_lengths(case.T, size, case.order)[rank]
    q, k, v = np.random.default_rng(rank).standard_normal((3, 1, case.heads, T, case.dim), dtype=np.float32)
    options: dict[str, Any] = {"is_causal": True, "order": case.order}
    forward, backward = {
        "ring": (ring_attention_fwd, ring_attention_bwd),
        "all_to_all": (all_to_all_attention_fwd, all_to_all_attention_bwd),
    }[case.function]
    small = [x[:, :, :64] for x in (q, k, v)]
    backward(small[0], forward(comm, *small, **options)[1])  # loads kernels
    comm.take()
    found: dict[str, Any] = {"rank": rank, "forward_s": [], "backward_s": [], "cpu_s": []}
    if with_memory:
        found["input_bytes"] = 3 * q.nbytes
        found["peak_bytes"] = memory.peak_extra_bytes(
            lambda: backward(q, forward(comm, q, k, v, **options)[1]), "numpy"
        )
    else:
        for _ in range(case.repeats):
            MPI.COMM_WORLD.Barrier()
            start, cpu = time.perf_counter(), time.process_time()
            _, ctx = forward(comm, q, k, v, **options)
            found["forward"], middle = comm.take(), time.perf_counter()
            backward(q, ctx)
            found["backward"], end = comm.take(), time.perf_counter()
            found["forward_s"].append(middle - start)
            found["backward_s"].append(end - middle)
            found["cpu_s"].append(time.process_time() - cpu)
    every = comm.allgather(found)
    if rank == 0:
        print(json.dumps(every))


def link_on_rank() -> None:
    """Latency and bandwidth of a message from one rank to another and back, the best of several."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    found = {}
    for size, repeats in ((1, 2000), (2**23, 30)):
        buffer, times = np.zeros(size, np.uint8), []
        for _ in range(repeats):
            start = time.perf_counter()
            for sender in (0, 1):
                (comm.Send if comm.Get_rank() == sender else comm.Recv)(buffer, 1 - comm.Get_rank())
            times.append((time.perf_counter() - start) / 2)
        found[size] = min(times)
    if comm.Get_rank() == 0:
        print(json.dumps({"latency_s": found[1], "bytes_per_s": 2**23 / (found[2**23] - found[1])}))


def link(_: argparse.Namespace) -> dict[str, float]:
    return start_ranks(2, "link")


def run_ranks(size: int, case: Case, with_memory: bool = False) -> dict[str, Any]:
    given = json.dumps([case._asdict(), with_memory])
    return {**case._asdict(), "ranks": size, "results": start_ranks(size, given)}


def start_ranks(size: int, given: str) -> Any:
    """What rank 0 prints."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    command = [str(mpiexec), "-n", str(size), sys.executable, "-m", "benchmarks.distributed", "rank"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "ATTNARRAY_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, given], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def ring(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    cases = [Case("ring", "zigzag"), Case("ring", "contiguous"), Case("all_to_all", "contiguous")]
    cases = [case._replace(T=arguments.length, repeats=arguments.repeats) for case in cases]
    return [run_ranks(size, case) for size in arguments.ranks for case in (cases if size > 1 else cases[:1])]


def rank_memory(_: argparse.Namespace) -> list[dict[str, Any]]:
    shapes = [(1, 16_384), (2, 32_768), (4, 65_536)]
    return [run_ranks(size, Case(T=T, heads=1, dim=32), with_memory=True) for size, T in shapes]


HEADS, DIM, CHUNK, QUERIES = 4, 64, 62_500, 64  # a chunk of keys has 64 MB


def beyond_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Attention over keys of 8 GB, with values of as much, by workers that may hold 2 GB.

    Every chunk has the same keys, and its values are the same plus the number of the chunk over that of all. So each
    chunk has as much weight, and the output is that over one chunk plus the mean of these numbers: a chunk that is lost
    or counted twice changes it.
    """
    import dask.array as da
    import distributed

    from attnarray.distributed import dask as blocked

    count = arguments.gigabytes * 10**9 // (4 * HEADS * DIM * CHUNK)
    chunks = ((1,), (HEADS,), (CHUNK,) * count, (DIM,))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="2GB", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        k = da.map_blocks(
            _chunk, seed=1, shift=0.0, chunks=chunks, dtype=np.float32, meta=np.empty((0,) * 4, np.float32)
        )
        v = da.map_blocks(
            _chunk, seed=2, shift=1 / count, chunks=chunks, dtype=np.float32, meta=np.empty((0,) * 4, np.float32)
        )
        q = _drawn(3, QUERIES)
        start = time.perf_counter()
        out = client.compute(blocked.scaled_dot_product_attention(da.from_array(q), k, v), sync=True)
        seconds = time.perf_counter() - start
        peaks = client.run(peak_resident)
    wide = [x.astype(np.float64) for x in (q, _drawn(1, CHUNK), _drawn(2, CHUNK))]
    scores = wide[0] @ wide[1].mT / 8
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = weights @ wide[2] / weights.sum(axis=-1, keepdims=True) + (count - 1) / (2 * count)
    return {
        "key_bytes": k.nbytes,
        "value_bytes": v.nbytes,
        "chunks": count,
        "seconds": seconds,
        "peak_bytes_of_workers": list(peaks.values()),
        "memory_limit_bytes": 2 * 10**9,
        "largest_error": float(np.max(np.abs(out - expected))),
        "largest_output": float(np.max(np.abs(expected))),
    }


def workers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Causal attention with its gradients on 1, 2 and 4 workers of Dask with one thread each; 4,096 rows in a chunk."""
    import dask
    import dask.array as da
    import distributed

    from attnarray.distributed import dask as blocked

    case, found = Case(T=arguments.length), []
    host = np.random.default_rng(0).standard_normal((3, 1, case.heads, case.T, case.dim), dtype=np.float32)
    for count in arguments.ranks:
        with (
            distributed.LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster) as client,
        ):
            q, k, v = (client.persist(da.from_array(x, chunks=(1, case.heads, 4096, case.dim))) for x in host)
            times = []
            for n in range(1 + arguments.repeats):  # the first loads kernels
                # Another scale each time, as Dask keeps results by name.
                out, ctx = blocked.scaled_dot_product_attention_fwd(q, k, v, is_causal=True, scale=(8 + n) / 64)
                grads = blocked.scaled_dot_product_attention_bwd(q, ctx)
                start = time.perf_counter()
                distributed.wait(dask.persist(out, grads.query, grads.key, grads.value))
                times.append(time.perf_counter() - start)
            found.append({"workers": count, "seconds": times[1:], "tasks": len(dict(grads.key.__dask_graph__()))})
    return found


def _drawn(seed: int, rows: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, HEADS, rows, DIM), dtype=np.float32)


def _chunk(seed: int, shift: float, block_info: Any = None) -> np.ndarray:
    """One chunk of keys or values."""
    return _drawn(seed, CHUNK) + np.float32(shift * block_info[None]["chunk-location"][2])


def peak_resident() -> int:
    """The largest resident memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def kills(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute output and gradients again and again, killing a worker at a random moment of each."""
    import dask
    import distributed

    from benchmarks.distributed_kills import Killer, results

    # A machine may be so busy that a new worker takes longer than the 15 seconds after which Dask gives a lost one up.
    config = {"distributed.scheduler.allowed-failures": 1000, "distributed.deploy.lost-worker-timeout": "600s"}
    with (
        dask.config.set(config),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
        aa.use_kernels("reference"),
    ):
        killer = Killer()
        cluster.scheduler.add_plugin(killer)
        expected, rng, rounds = results(client), np.random.default_rng(arguments.seed), []
        for _ in range(arguments.count):
            client.wait_for_workers(2)
            killer.pids, killer.left = list(client.run(os.getpid).values()), int(rng.integers(1, 120))
            moment, alive, found = killer.left, len(killer.pids), results(client)
            equal = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
            rounds.append({"after_tasks": moment, "killed": alive - len(killer.pids), "equal": equal})
            print(rounds[-1], flush=True)
    return {
        "kills": sum(one["killed"] for one in rounds),
        "right": sum(one["equal"] for one in rounds),
        "rounds": rounds,
    }


def main() -> None:
    if sys.argv[1:2] == ["rank"]:
        if sys.argv[2] == "link":
            link_on_rank()
            return
        case, with_memory = json.loads(sys.argv[2])
        on_rank(Case(**case), with_memory)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ring", "link", "memory", "dask", "workers", "kills"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--length", type=int, default=Case().T)
    parser.add_argument("--repeats", type=int, default=Case().repeats)
    parser.add_argument("--gigabytes", type=int, default=8)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="the name of the file in results")
    arguments = parser.parse_args()
    parts = {
        "ring": ring,
        "link": link,
        "memory": rank_memory,
        "dask": beyond_memory,
        "workers": workers,
        "kills": kills,
    }
    measured = parts[arguments.what](arguments)
    machine = {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine(), "numpy": np.__version__}
    text = json.dumps({"command": " ".join(sys.argv[1:]), "machine": machine, arguments.what: measured}, indent=1)
    print(text)
    if arguments.output:
        (RESULTS / f"{arguments.output}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

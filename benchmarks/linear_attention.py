"""Linear attention by the gated delta rule against PyTorch eager, softmax attention, matrix products and copies.

    python -m benchmarks.linear_attention --output NAME-linear   # writes results/NAME-linear.json
    python -m benchmarks.linear_attention --quick                # a test that it runs

The peers are the loop over steps of transformers (`torch_recurrent_gated_delta_rule`), its chunked form
(`torch_chunk_gated_delta_rule`), and the chunked form below, written with one triangular solve for all chunks. All
sides run in turn; figures are the best of the rounds, in milliseconds. `PREDICTED` was written before the run.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import attnarray as aa
from attnarray.dispatch import thread_count
from attnarray.info import cpu_model

RESULTS = Path(__file__).parent / "results"
HEADS, DIM, CHUNK = 8, 64, 64
PREDICTED = {
    "forward, ours over the loop": 40.0,
    "forward and backward, ours over the loop (2,048 steps)": 50.0,
    "forward, ours over our chunked PyTorch": 7.0,
    "forward and backward, ours over our chunked PyTorch": 6.0,
    "softmax over linear, forward and backward": 15.0,
    "softmax over linear, forward and backward, 2 heads, long": 80.0,
    "share of sgemm's rate, forward": 0.7,
    "share of sgemm's rate, forward and backward": 0.7,
    "step: share of the bandwidth of a copy": 0.85,
    "memory over inputs, outputs and gradients": 1.3,
    "float32 error over that of the recurrence": 1.5,
}


def arrays(steps: int, heads: int = HEADS, largest: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Queries, keys of length 1, values, decays from 1 to e^-largest a step, and beta, in float32."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, 1, heads, steps, DIM), dtype=np.float32)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    decay = -largest * rng.random((1, heads, steps), dtype=np.float32) ** 3
    return {"query": q, "key": k, "value": v, "decay": decay, "beta": rng.random((1, heads, steps), dtype=np.float32)}


def ours(given: dict[str, np.ndarray], backward: bool, **options: Any) -> Any:
    """One forward, with the backward of a cotangent of ones if asked for."""
    if not backward:
        return aa.linear_attention(**given, rule="gated_delta", **options)
    result, ctx = aa.linear_attention_fwd(**given, rule="gated_delta", **options)
    return aa.linear_attention_bwd(np.ones_like(result.out), ctx)


def softmax(given: dict[str, np.ndarray], backward: bool) -> Any:
    """Causal softmax attention of the same queries, keys and values."""
    qkv = given["query"], given["key"], given["value"]
    if not backward:
        return aa.scaled_dot_product_attention(*qkv, is_causal=True)
    out, ctx = aa.scaled_dot_product_attention_fwd(*qkv, is_causal=True)
    return aa.scaled_dot_product_attention_bwd(np.ones_like(out), ctx)


def chunked_torch(q: Any, k: Any, v: Any, decay: Any, beta: Any) -> Any:
    """The chunked form in PyTorch: (B, H, T, D) with T a multiple of the chunk."""
    import torch

    B, H, T, D = q.shape
    q, k, v = (x.reshape(B, H, T // CHUNK, CHUNK, D) for x in (q * D**-0.5, k, v))
    g, beta = decay.reshape(B, H, -1, CHUNK).cumsum(-1), beta.reshape(B, H, -1, CHUNK, 1)
    pairs = (g[..., :, None] - g[..., None, :]).tril().exp().tril()  # (B, H, N, C, C)
    system = torch.eye(CHUNK) + beta * (k @ k.mT * pairs).tril(-1)
    solved = torch.linalg.solve_triangular(
        system, torch.cat([beta * v, beta * k * g[..., None].exp()], -1), upper=False, unitriangular=True
    )
    made, erased = solved[..., :D], solved[..., D:]
    weights, q_start = (q @ k.mT) * pairs, q * g[..., None].exp()
    k_end, whole = k * (g[..., -1:] - g)[..., None].exp(), g[..., -1].exp()
    S, outs = q.new_zeros(B, H, D, v.shape[-1]), []
    for n in range(T // CHUNK):
        u = made[:, :, n] - erased[:, :, n] @ S
        outs.append(q_start[:, :, n] @ S + weights[:, :, n] @ u)
        S = whole[:, :, n, None, None] * S + k_end[:, :, n].mT @ u
    return torch.stack(outs, 2).reshape(B, H, T, -1)


def peer(kind: str, given: dict[str, np.ndarray]) -> Callable[[bool], Any]:
    """A peer in PyTorch, as a function of whether the backward is asked for."""
    import torch
    from transformers.models.qwen3_next import modeling_qwen3_next as theirs

    torch.set_num_threads(thread_count())
    q, k, v, decay, beta = (torch.from_numpy(given[n]) for n in ("query", "key", "value", "decay", "beta"))

    def forward(*given: Any) -> Any:
        if kind == "ours in PyTorch":
            return chunked_torch(*given)
        function = getattr(theirs, f"torch_{kind}_gated_delta_rule")
        swapped = [x.transpose(1, 2) for x in given]
        options = {"initial_state": None, "output_final_state": False}
        return function(*swapped[:3], g=swapped[3], beta=swapped[4], **options)[0].transpose(1, 2)

    def run(backward: bool) -> Any:
        inputs = [x.detach().requires_grad_(backward) for x in (q, k, v, decay, beta)]
        with torch.set_grad_enabled(backward):
            out = forward(*inputs)
            return torch.autograd.grad(out.sum(), inputs) if backward else out

    return run


def best(functions: dict[str, Callable[[], Any]], rounds: int, warm: bool = True) -> dict[str, float]:
    """The best time of each in milliseconds, all in turn after one call to warm up."""
    for function in functions.values() if warm else ():
        function()
    found = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            found[name] = min(found[name], 1e3 * (time.perf_counter() - start))
    return found


def speed(steps: int, rounds: int) -> dict[str, Any]:
    """Against the peers and products: `steps` for all but the backward of the loop, which keeps every state."""
    given, short = arrays(steps), arrays(steps // 4)
    loop, loop_short = peer("recurrent", given), peer("recurrent", short)
    theirs, chunked = peer("chunk", given), peer("ours in PyTorch", given)
    for out in (theirs(False), chunked(False)):
        assert np.allclose(out.numpy(), ours(given, False).out, atol=1e-3)
    times = best({
        "forward: ours": lambda: ours(given, False), "forward: our chunked PyTorch": lambda: chunked(False),
        "forward: chunked form of transformers": lambda: theirs(False),
        "both: ours": lambda: ours(given, True), "both: our chunked PyTorch": lambda: chunked(True),
        "both, short: ours": lambda: ours(short, True),
    }, rounds)  # fmt: skip
    times |= best({
        "forward: loop of transformers": lambda: loop(False), "both, short: loop of transformers":
        lambda: loop_short(True), "both: chunked form of transformers": lambda: theirs(True),
    }, 1)  # fmt: skip
    return times


def share(steps: int, rounds: int) -> dict[str, float]:
    """The rate of products, by the flops that triangular matrices leave, over that of NumPy's product."""
    given, matrix = arrays(steps), np.random.default_rng(0).random((2048, 2048), dtype=np.float32)
    times = best({
        "forward": lambda: ours(given, False), "both": lambda: ours(given, True),
        "sgemm of 2,048": lambda: matrix @ matrix,
    }, rounds)  # fmt: skip
    square = 2 * HEADS * steps * CHUNK * DIM  # flops of a product of a chunk's matrix with another, if D is C
    rate = 2 * 2048**3 / times["sgemm of 2,048"]
    times["share forward"] = 6 * square / times["forward"] / rate
    times["share both"] = 19.5 * square / times["both"] / rate
    return times


def by_dim(steps: int, rounds: int) -> dict[str, float]:
    """A decay for each key dimension: by kernels, by array code, and beside one for each head."""
    given = arrays(steps)
    decay = -(np.random.default_rng(1).random(given["key"].shape, dtype=np.float32) ** 3)
    dims = {**given, "decay": decay}

    def array_code(backward: bool) -> Any:
        with aa.use_kernels("reference"):
            return ours(dims, backward)

    functions = {"head": lambda b: ours(given, b), "dim": lambda b: ours(dims, b)}
    passes = {"forward": False, "both": True}
    times = best({f"{name}: {n}": functools.partial(f, b) for name, b in passes.items() for n, f in functions.items()},
                 rounds)  # fmt: skip
    return times | best({f"{name}: array code": functools.partial(array_code, b) for name, b in passes.items()}, 1)


def one_head(steps: int, rounds: int) -> dict[str, float]:
    """One head of one sequence on one thread and on all, with 64 and 128 value columns."""
    times = {}
    for width in (64, 128):
        rng = np.random.default_rng(0)
        given = arrays(steps, 1)
        q, k, v = rng.standard_normal((3, 1, 1, steps, width), dtype=np.float32)
        given |= {"query": q, "key": k / np.linalg.norm(k, axis=-1, keepdims=True), "value": v}

        def run(threads: int, backward: bool, given: dict[str, np.ndarray] = given) -> None:
            before = os.environ.get("ATTNARRAY_NUM_THREADS")
            os.environ["ATTNARRAY_NUM_THREADS"] = str(threads)
            try:
                ours(given, backward)
            finally:
                os.environ.pop("ATTNARRAY_NUM_THREADS")
                if before is not None:
                    os.environ["ATTNARRAY_NUM_THREADS"] = before

        all_threads = thread_count()
        times |= best({
            f"{name}, {width} columns: {threads} threads": functools.partial(run, threads, name == "both")
            for name in ("forward", "both") for threads in (1, all_threads)
        }, rounds)  # fmt: skip
    return times


def against_softmax(steps: int, heads: int, rounds: int) -> dict[str, float]:
    given, small = arrays(steps, heads), arrays(256, heads)
    ours(small, True), softmax(small, True)  # which load the kernels
    functions = {"linear": lambda: ours(given, True), "softmax": lambda: softmax(given, True)}
    return best(functions, rounds, warm=rounds > 1)


def one_step(batch: int, rounds: int) -> dict[str, float]:
    """A step on states of `batch` times 16 heads of 128 x 128 numbers, and a copy of them."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, batch, 16, 128), dtype=np.float32)
    state = rng.standard_normal((batch, 16, 128, 128), dtype=np.float32)
    other, beta, decay = np.empty_like(state), np.full((batch, 16), 0.01, np.float32), np.zeros((batch, 16), np.float32)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    step = functools.partial(aa.linear_attention_step, q, k, v, state, decay=decay, beta=beta, rule="gated_delta")
    half = batch // 2

    def copy() -> None:
        import threading

        second = threading.Thread(target=np.copyto, args=(other[:half], state[:half]))
        second.start()
        np.copyto(other[half:], state[half:])
        second.join()

    return best({"step": step, "copy on two threads": copy, "copy": lambda: np.copyto(other, state)}, rounds)


def memory(steps: int) -> dict[str, float]:
    """The largest memory of NumPy's arrays in forward and backward, and that of inputs, outputs and gradients."""
    given = arrays(steps)
    ours(given, True)
    tracemalloc.start()
    grads = ours(given, True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    inputs = sum(x.nbytes for x in given.values())
    results = given["value"].nbytes + sum(g.nbytes for g in grads if g is not None)
    return {"peak beyond inputs": peak / 1e6, "inputs": inputs / 1e6, "outputs and gradients": results / 1e6,
            "peak with inputs over all": (peak + inputs) / (inputs + results)}  # fmt: skip


def accuracy(steps: int) -> dict[str, float]:
    """The largest float32 error of any result or gradient over that of the recurrence, for several decays."""
    found = {}
    for largest in (0.0, 0.1, 1.0, 20.0):
        given = arrays(steps, 2, largest)
        exact = ours({n: x.astype(np.float64) for n, x in given.items()}, True, chunk_size=1)
        errors = []
        for size in (CHUNK, 1):
            grads = ours(given, True, chunk_size=size)
            errors.append(
                [np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in zip(grads[:5], exact[:5], strict=True)]
            )
        found[f"decays to e^-{largest:g}"] = max(a / b for a, b in zip(*errors, strict=True))
    return found


def came(found: dict[str, Any]) -> dict[str, float]:
    """The figures of `PREDICTED` as they came, of the parts that ran."""
    over = {
        "forward, ours over the loop": ("speed", "forward: loop of transformers", "forward: ours"),
        "forward and backward, ours over the loop (2,048 steps)":
            ("speed", "both, short: loop of transformers", "both, short: ours"),
        "forward, ours over our chunked PyTorch": ("speed", "forward: our chunked PyTorch", "forward: ours"),
        "forward and backward, ours over our chunked PyTorch": ("speed", "both: our chunked PyTorch", "both: ours"),
        "softmax over linear, forward and backward": ("softmax", "softmax", "linear"),
        "softmax over linear, forward and backward, 2 heads, long": ("long", "softmax", "linear"),
        "step: share of the bandwidth of a copy": ("step", "copy on two threads", "step"),
    }  # fmt: skip
    ratios = {name: found[part][a] / found[part][b] for name, (part, a, b) in over.items() if part in found}
    if "share" in found:
        ratios["share of sgemm's rate, forward"] = found["share"]["share forward"]
        ratios["share of sgemm's rate, forward and backward"] = found["share"]["share both"]
    if "memory" in found:
        ratios["memory over inputs, outputs and gradients"] = found["memory"]["peak with inputs over all"]
    if "accuracy" in found:
        ratios["float32 error over that of the recurrence"] = max(found["accuracy"].values())
    return {name: round(ratios[name], 3) for name in PREDICTED if name in ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="NAME", help="name of the file in benchmarks/results, without extension")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument(
        "--only", nargs="*", choices=("speed", "share", "dims", "head", "softmax", "long", "step", "memory", "accuracy")
    )
    options = parser.parse_args()
    small = options.quick
    parts: dict[str, Callable[[], Any]] = {
        "speed": lambda: speed(256 if small else 8192, 1 if small else 5),
        "share": lambda: share(256 if small else 8192, 1 if small else 8),
        "dims": lambda: by_dim(256 if small else 2048, 1 if small else 7),
        "head": lambda: one_head(256 if small else 8192, 1 if small else 20),
        "softmax": lambda: against_softmax(256 if small else 8192, HEADS, 1 if small else 2),
        "long": lambda: against_softmax(512 if small else 65536, 2, 1),
        "step": lambda: one_step(2 if small else 32, 1 if small else 20),
        "memory": lambda: memory(256 if small else 8192),
        "accuracy": lambda: accuracy(128 if small else 2048),
    }
    path = RESULTS / f"{options.output}.json"
    found = json.loads(path.read_text()) if options.output and path.exists() else {}
    for name in parts if options.only is None else options.only:
        found[name] = parts[name]()
        print(name, json.dumps(found[name], indent=1))
    if options.output:
        machine = {
            "cpu": cpu_model(),
            "threads": thread_count(),
            "numpy": np.__version__,
            "system": platform.platform(),
        }
        found |= {"machine": machine, "command": "python -m benchmarks.linear_attention"}
        found |= {"predicted": PREDICTED, "came": came(found)}
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

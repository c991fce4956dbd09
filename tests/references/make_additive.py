"""Make additive.npz: Bahdanau's attention and its gradients, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_additive.py`.

PyTorch has no such function. The formulas are those of arXiv:1409.0473, appendix A.1.2, with the paper's names: the
score of state s and annotation h is v_a^T tanh(W_a s + U_a h), here with a bias b. The form of the file is that of
sdpa.npz. Arrays: s (B, T, Dq), h (B, S, Dk), NaN past the `lengths`; W_a, U_a, b, v_a. The cotangent is `dout`;
expected are `out` and `grad_<input>`.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32
B, T, S, Dq, Dk, A = 2, 3, 5, 4, 7, 6
CASES = {"plain": (), "lengths": (5, 2), "no key": (4, 0)}


def arrays_of(lengths, rng):
    shapes = {"s": (B, T, Dq), "h": (B, S, Dk), "W_a": (A, Dq), "U_a": (A, Dk), "b": (A,), "v_a": (A,)}
    arrays = {name: np.round(64 * rng.standard_normal(shape)) / 64 for name, shape in shapes.items()}
    arrays["dout"] = np.round(64 * rng.standard_normal((B, T, Dk))) / 64
    return {**arrays, "lengths": np.array(lengths)} if lengths else arrays


def attended(s, h, W_a, U_a, b, v_a, lengths):
    """Each pair by itself, each sequence as long as it is."""
    rows = []
    for n in range(B):
        count = S if lengths is None else int(lengths[n])
        for i in range(T):
            scores = [v_a @ torch.tanh(W_a @ s[n, i] + U_a @ h[n, j] + b) for j in range(count)]
            weights = torch.stack(scores).softmax(0) if scores else []
            rows.append(sum((weights[j] * h[n, j] for j in range(count)), start=torch.zeros_like(h[n, 0])))
    return torch.stack(rows).reshape(B, T, Dk)


def results(arrays, dtype):
    """Output and gradients, as float64 NumPy arrays."""
    given = {n: torch.from_numpy(a).to(dtype if a.dtype == np.float64 else None) for n, a in arrays.items()}
    dout, lengths = given.pop("dout"), given.pop("lengths", None)
    for x in given.values():
        x.requires_grad_()
    out = attended(**given, lengths=lengths)
    grads = torch.autograd.grad((out * dout).sum(), list(given.values()))
    found = {"out": out, **{f"grad_{n}": g for n, g in zip(given, grads, strict=True)}}
    return {n: x.detach().double().numpy() for n, x in found.items()}


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, single = {}, 0.0
    for name, lengths in CASES.items():
        arrays = arrays_of(lengths, np.random.default_rng(zlib.crc32(name.encode())))
        expected = results(arrays, torch.float64)
        difference = largest_difference(results(arrays, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        if lengths:
            arrays["h"][np.arange(S) >= arrays["lengths"][:, None]] = np.nan
        stored |= packed(name, {}, {**arrays, **expected})
    path = Path(__file__).with_name("additive.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

"""Make linear.npz: linear attention by four rules, and gradients, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_linear.py`.

PyTorch has no such function. The formulas are those of the papers, step by step: arXiv:2006.16236 (linear), 2312.06635
(gated, for each key dimension), 2406.06484 (delta) and 2412.06464 (gated delta), here with the state as (Dk, Dv) and
with one state for a group of query heads.

The form of the file is that of sdpa.npz. Arrays: query (B, H, T, Dk), key, value, decay, beta, initial_state;
cotangents `dout` and `dstate`; expected are `out`, `state` and `grad_<input>`.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32
B, H, HKV, T, DK, DV = 2, 4, 2, 20, 3, 5
CASES = {
    "linear": {"rule": "linear"},
    "gated": {"rule": "gated"},
    "gated by dim": {"rule": "gated"},
    "delta": {"rule": "delta"},
    "gated delta": {"rule": "gated_delta"},
    "gated delta by dim": {"rule": "gated_delta", "scale": 0.75},
}


def arrays_of(name, rng):
    """Inputs on a grid of 64ths, keys of about length 1, decays from 1 to e^-4."""
    shapes = {"query": (B, H, T, DK), "key": (B, HKV, T, DK), "value": (B, HKV, T, DV),
              "initial_state": (B, HKV, DK, DV), "dout": (B, H, T, DV), "dstate": (B, HKV, DK, DV)}  # fmt: skip
    made = {name: np.round(64 * rng.standard_normal(shape)) / 64 for name, shape in shapes.items()}
    made["key"] = np.round(64 * made["key"] / np.linalg.norm(made["key"], axis=-1, keepdims=True)) / 64
    if "gated" in name:
        shape = (B, HKV, T, DK) if "dim" in name else (B, HKV, T)
        made["decay"] = -np.round(64 * 4 * rng.random(shape) ** 3) / 64
    if "delta" in name:
        made["beta"] = np.round(64 * rng.random((B, HKV, T))) / 64
    return made


def attended(given, scale=None, **_):
    """The outputs (B, H, T, Dv) and the last state."""
    S, out = given["initial_state"], []
    scale = DK**-0.5 if scale is None else scale
    for t in range(T):
        k, v = given["key"][:, :, t], given["value"][:, :, t]
        if "decay" in given:
            factor = given["decay"][:, :, t].exp()
            S = S * (factor[..., None] if factor.ndim == 3 else factor[..., None, None])
        if "beta" in given:
            v = given["beta"][:, :, t, None] * (v - torch.einsum("bhkv,bhk->bhv", S, k))
        S = S + torch.einsum("bhk,bhv->bhkv", k, v)
        shared = S.repeat_interleave(H // HKV, dim=1)
        out.append(scale * torch.einsum("bhkv,bhk->bhv", shared, given["query"][:, :, t]))
    return torch.stack(out, dim=2), S


def results(options, arrays, dtype):
    """Output, state and gradients, as float64 NumPy arrays."""
    given = {n: torch.from_numpy(a).to(dtype) for n, a in arrays.items()}
    inputs = {n: x.requires_grad_() for n, x in given.items() if n not in ("dout", "dstate")}
    out, state = attended(given, **options)
    loss = (out * given["dout"]).sum() + (state * given["dstate"]).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()))
    found = {"out": out, "state": state, **{f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)}}
    return {n: x.detach().double().numpy() for n, x in found.items()}


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, single = {}, 0.0
    for name, options in CASES.items():
        arrays = arrays_of(name, np.random.default_rng(zlib.crc32(name.encode())))
        expected = results(options, arrays, torch.float64)
        difference = largest_difference(results(options, arrays, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        stored |= packed(name, options, {**arrays, **expected})
    path = Path(__file__).with_name("linear.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

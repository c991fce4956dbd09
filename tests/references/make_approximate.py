"""Make approximate.npz: Linformer, Nyström and LSH attention, and gradients, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_approximate.py`.

The formulas are those of arXiv:2006.04768 (equation 7), arXiv:2102.03902 (equations 13 and 14; segment means by
averaging equal segments) and arXiv:2001.04451 (equations 3 to 5), the last one as dense attention with the mask of all
rounds; buckets have no gradient.

The form of the file is that of sdpa.npz. The cotangent of `out` is `dout`; expected are `out` and `grad_<input>`.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from make_sdpa import packed

B, H, T, S, D, Dv = 2, 2, 12, 8, 4, 3


def linformer(given):
    E = given["key_projection"]
    F = given.get("value_projection", E)
    scores = given["query"] @ (E @ given["key"]).mT / D**0.5
    return scores.softmax(-1) @ (F @ given["value"])


def nystrom(given, num_landmarks, iterations):
    query, key, value = (given[name] for name in ("query", "key", "value"))
    q, k = (x.unflatten(2, (num_landmarks, -1)).mean(3) for x in (query, key))
    A = (q @ k.mT / D**0.5).softmax(-1)
    eye = torch.eye(num_landmarks, dtype=A.dtype)
    Z = A.mT / (A.abs().sum(-2).amax(-1) * A.abs().sum(-1).amax(-1))[..., None, None]
    for _ in range(iterations):
        Z = 0.25 * Z @ (13 * eye - A @ Z @ (15 * eye - A @ Z @ (7 * eye - A @ Z)))
    return (query @ k.mT / D**0.5).softmax(-1) @ Z @ (q @ key.mT / D**0.5).softmax(-1) @ value


def lsh(given, chunk_size, is_causal):
    query, value = given["query"], given["value"]
    seen = torch.zeros(B, H, T, T, dtype=torch.bool)
    for rotation in given["rotations"].detach():
        rotated = query.detach() @ rotation
        buckets = torch.cat([rotated, -rotated], -1).argmax(-1)
        ranks = (buckets * T + torch.arange(T)).argsort(-1).argsort(-1)
        back = ranks[..., None] // chunk_size - ranks[..., None, :] // chunk_size
        seen |= (buckets[..., None] == buckets[..., None, :]) & (back >= 0) & (back <= 1)
    if is_causal:
        seen &= torch.ones(T, T, dtype=torch.bool).tril()
    others = seen & ~torch.eye(T, dtype=torch.bool)
    seen = torch.where(others.any(-1, keepdim=True), others, seen)
    scores = query @ torch.nn.functional.normalize(query, dim=-1).mT / D**0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


QKV = {"query": (B, H, T, D), "key": (B, H, S, D), "value": (B, H, S, Dv)}
ITSELF = {"query": (B, H, T, D), "value": (B, H, T, Dv)}
CASES = {
    "linformer_attention": (linformer, {}, {**QKV, "key_projection": (5, S)}),
    "linformer_attention: two": (linformer, {}, {**QKV, "key_projection": (5, S), "value_projection": (5, S)}),
    "nystrom_attention": (nystrom, {"num_landmarks": 4, "iterations": 6}, QKV),
    "lsh_attention": (lsh, {"chunk_size": 4, "is_causal": False}, {**ITSELF, "rotations": (2, D, 2)}),
    "lsh_attention: causal": (lsh, {"chunk_size": 3, "is_causal": True}, {**ITSELF, "rotations": (3, D, 1)}),
}


def main():
    """Write the file."""
    stored = {}
    for name, (function, options, shapes) in CASES.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        drawn = {**shapes, "dout": (B, H, T, Dv)}
        arrays = {key: np.round(64 * rng.standard_normal(shape)) / 64 for key, shape in drawn.items()}
        given = {key: torch.from_numpy(x) for key, x in arrays.items()}
        inputs = {key: x.requires_grad_() for key, x in given.items() if key not in ("dout", "rotations")}
        out = function(given, **options)
        grads = torch.autograd.grad((out * given["dout"]).sum(), list(inputs.values()))
        found = {"out": out, **{f"grad_{key}": grad for key, grad in zip(inputs, grads, strict=True)}}
        stored |= packed(name, options, {**arrays, **{key: x.detach().numpy() for key, x in found.items()}})
    path = Path(__file__).with_name("approximate.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {path.stat().st_size} bytes; torch {torch.__version__}")


if __name__ == "__main__":
    main()

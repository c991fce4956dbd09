"""Stores results and gradients of attention's variants, from the papers' formulas in PyTorch's float64 autograd.

    python tests/references/make_variants.py

Each formula is written here by itself, with whole (T, S) arrays and loops over heads where that is plainer.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from make_sdpa import packed

F = torch.nn.functional
B, T, S, E, H, D, DV = 2, 5, 7, 6, 4, 6, 3
EPS = 1e-6


def drawn(rng, **shapes):
    """Multiples of 1/64 with deviation 1, which float32 holds exactly."""
    return {name: np.asarray(np.round(64 * rng.standard_normal(shape)) / 64) for name, shape in shapes.items()}


def rms(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def by_head(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def softmax_attention(scores, v):
    return torch.softmax(scores, -1) @ v


def causal(scores):
    queries, keys = scores.shape[-2:]
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return scores.masked_fill(~seen, -math.inf)


# Multi-head attention with norms, cosines and gates: Hkv = 2 for H = 4.

HEADS = {"query": (B, T, E), "key": (B, S, E), "wq": (H * D, E), "wk": (2 * D, E), "wv": (2 * DV, E), "wo": (E, H * DV)}


def _heads(a, q, k, scale):
    v = by_head(a["key"] @ a["wv"].T, 2).repeat_interleave(2, 1)
    out = softmax_attention(scale * q @ k.repeat_interleave(2, 1).mT, v)
    return out.transpose(1, 2)  # (B, T, H, Dv)


def norm_of_each_head(a):
    """Qwen3: RMS norm of each head, one scale for all; with a gate of each number after the weighted sum."""
    q = rms(by_head(a["query"] @ a["wq"].T, H), a["query_norm"])
    k = rms(by_head(a["key"] @ a["wk"].T, 2), a["key_norm"])
    out = _heads(a, q, k, D**-0.5).flatten(2)
    return (out * torch.sigmoid(a["query"] @ a["gate"].T)) @ a["wo"].T


def norm_of_all_heads(a):
    """OLMo 2: RMS norm over all heads; with a gate of each head."""
    q = by_head(rms(a["query"] @ a["wq"].T, a["query_norm"]), H)
    k = by_head(rms(a["key"] @ a["wk"].T, a["key_norm"]), 2)
    out = _heads(a, q, k, D**-0.5) * torch.sigmoid(a["query"] @ a["gate"].T)[..., None]
    return out.flatten(2) @ a["wo"].T


def cosine(a):
    """Swin v2: cosines times the exponential of a learned number, which is clamped; one head is beyond the clamp."""
    q, k = by_head(a["query"] @ a["wq"].T, H), by_head(a["key"] @ a["wk"].T, 2)
    scale = torch.clamp(a["logit_scale"], max=math.log(1 / 0.01)).exp()
    return _heads(a, F.normalize(q, dim=-1) * scale[:, None, None], F.normalize(k, dim=-1), 1.0).flatten(2) @ a["wo"].T


def rotated(x):
    """x (..., T, 2 N): pairs n and n + N rotated by position times 10000^(-n / N)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    a, b = x.split(half, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


def latent(a):
    """DeepSeek-V2, equations 9 to 19: H 3, C 5, Dn 4, Dr 2, Dv 3; every key and value is projected."""
    q = by_head(rms(a["x"] @ a["query_down"].T, a["query_norm"]) @ a["query"].T, 3)
    q = torch.cat([q[..., :4], rotated(q[..., 4:])], -1)
    kept = a["x"] @ a["latent"].T
    c, shared = rms(kept[..., :5], a["latent_norm"]), rotated(kept[..., 5:])
    k = by_head(c @ a["key_up"].T, 3)
    k = torch.cat([k, shared[:, None].expand(-1, 3, -1, -1)], -1)
    out = softmax_attention(causal(q @ k.mT / math.sqrt(6)), by_head(c @ a["value_up"].T, 3))
    return out.transpose(1, 2).flatten(2) @ a["out"].T


def forgetting(a):
    """FoX, equations 5 to 8, with the gates from key to query added one by one; H 4 over Hkv 2, after a cache of 2."""
    log_f = F.logsigmoid(a["gates"])
    decays = torch.stack([log_f[..., j + 1 : i + 1].sum(-1) for i in range(2, S) for j in range(S)], -1)
    k, v = (a[name].repeat_interleave(2, 1) for name in ("key", "value"))
    return softmax_attention(causal(a["query"] @ k.mT / math.sqrt(D) + decays.unflatten(-1, (T, S))), v)


def differential(a):
    """Differential Transformer, equations 1 to 3: 4 pairs of heads over 2 of keys, D 3, lambda_init 0.6."""
    q, k, v = (by_head(a["x"] @ a[name].T, n) for name, n in (("query", 8), ("key", 4), ("value", 2)))
    lambd = torch.exp((a["lambda_q"][0] * a["lambda_k"][0]).sum())
    lambd = lambd - torch.exp((a["lambda_q"][1] * a["lambda_k"][1]).sum()) + 0.6
    heads = []
    for h in range(4):
        first, second = (
            torch.softmax(causal(q[:, 2 * h + n] @ k[:, 2 * (h // 2) + n].mT / math.sqrt(3)), -1) for n in (0, 1)
        )
        heads.append(0.4 * rms((first - lambd * second) @ v[:, h // 2], a["norm"]))
    return torch.cat(heads, -1) @ a["out"].T


def _distances():
    """i - j (T, S) of queries after 2 cached positions."""
    return (torch.arange(2, S)[:, None] - torch.arange(S)).double()


def _biased(a, bias):
    return softmax_attention(causal(a["query"] @ a["key"].mT / math.sqrt(D) + bias), a["value"])


def kerple_log(a):
    """KERPLE, equation 7, with positive numbers by exponentials."""
    r1, r2 = (a[n].exp()[:, None, None] for n in ("r1", "r2"))
    return _biased(a, -r1 * torch.log(1 + r2 * _distances().abs()))


def kerple_power(a):
    """KERPLE, equation 6."""
    r1, r2 = (a[n].exp()[:, None, None] for n in ("r1", "r2"))
    distances = _distances().abs()
    return _biased(a, -r1 * torch.where(distances > 0, distances.clamp(min=1) ** r2, 0.0))


def fire(a):
    """FIRE, equations 6 to 8 and appendix E: c = 0.1 at first, L learned, between the positions of the queries."""
    c, limit = 0.1 * a["c"].exp(), 4.5 * a["L"].exp()
    reach = torch.maximum(torch.arange(2, S)[:, None].double(), limit)
    x = torch.log(1 + c * _distances().abs()) / torch.log(1 + c * reach)
    hidden = torch.relu(x[..., None] * a["w1"] + a["b1"])
    return _biased(a, (hidden @ a["w2"].T + a["b2"]).permute(2, 0, 1))


def cope(a):
    """CoPE, equations 3 to 8, by the steps of its listing: gates of scaled scores, masked before."""
    scores = causal(a["query"] @ a["key"].mT / math.sqrt(D))
    positions = torch.sigmoid(scores).flip(-1).cumsum(-1).flip(-1).clamp(max=len(a["e"]) - 1)
    below, above = positions.floor().long(), positions.ceil().long()
    products, rest = a["query"] @ a["e"].T, positions - positions.floor()
    return softmax_attention(
        scores + products.gather(-1, above) * rest + products.gather(-1, below) * (1 - rest), a["value"]
    )


def sigmoid(a):
    """Sigmoid attention, equation 3, with a learned b of each head."""
    scores = causal(a["query"] @ a["key"].mT / math.sqrt(D) + a["shift"][:, None, None])
    return torch.sigmoid(scores) @ a["value"]


QKV = {"query": (B, H, T, D), "key": (B, H, S, D), "value": (B, H, S, DV)}
FIRE = {**QKV, "w1": (9,), "b1": (9,), "w2": (H, 9), "b2": (H,), "c": (), "L": ()}
DIFFERENTIAL = {"x": (B, T, E), "query": (24, E), "key": (12, E), "value": (12, E), "lambda_q": (2, 3),
                "lambda_k": (2, 3), "norm": (6,), "out": (E, 24)}  # fmt: skip
FORGETTING = {"query": (B, H, T, D), "key": (B, 2, S, D), "value": (B, 2, S, DV), "gates": (B, H, S)}
LATENT = {"x": (B, T, E), "query_down": (7, E), "query_norm": (7,), "query": (18, 7), "latent": (7, E),
          "latent_norm": (5,), "key_up": (12, 5), "value_up": (9, 5), "out": (E, 9)}  # fmt: skip

VARIANTS = {
    "latent": (latent, LATENT),
    "forgetting": (forgetting, FORGETTING),
    "kerple log": (kerple_log, {**QKV, "r1": (H,), "r2": (H,)}),
    "kerple power": (kerple_power, {**QKV, "r1": (H,), "r2": (H,)}),
    "fire": (fire, FIRE),
    "cope": (cope, {**QKV, "e": (3, D)}),
    "sigmoid": (sigmoid, {**QKV, "shift": (H,)}),
    "differential": (differential, DIFFERENTIAL),
    "norm of each head": (norm_of_each_head, {**HEADS, "query_norm": (D,), "key_norm": (D,), "gate": (H * DV, E)}),
    "norm of all heads": (norm_of_all_heads, {**HEADS, "query_norm": (H * D,), "key_norm": (2 * D,), "gate": (H, E)}),
    "cosine": (cosine, {**HEADS, "logit_scale": (H,)}),
}


def results(name):
    """The arrays by name, the output, and the gradients."""
    f, shapes = VARIANTS[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    arrays = drawn(rng, **shapes)
    if name == "cosine":
        arrays["logit_scale"][1] = 5.0
    given = {n: torch.from_numpy(x).requires_grad_() for n, x in arrays.items()}
    out = f(given)
    dout = drawn(rng, dout=tuple(out.shape))
    grads = torch.autograd.grad((out * torch.from_numpy(dout["dout"])).sum(), list(given.values()))
    found = {"result": out, **{f"grad_{n}": g for n, g in zip(given, grads, strict=True)}}
    return {**arrays, **dout, **{n: x.detach().numpy() for n, x in found.items()}}


def main():
    stored = {}
    for name in VARIANTS:
        stored |= packed(name, {}, results(name))
    path = Path(__file__).with_name("variants.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(VARIANTS)} variants, {path.stat().st_size} bytes; torch {torch.__version__}")


if __name__ == "__main__":
    main()

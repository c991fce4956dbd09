"""Make linear.npz: linear attention by five rules, feature maps, and gradients, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_linear.py`.

PyTorch has no such function. The formulas are those of the papers, step by step: arXiv:2006.16236 (linear), 2312.06635
(gated, for each key dimension), 2406.06484 (delta), 2412.06464 (gated delta) and 2503.14456 (RWKV-7), here with the
state as (Dk, Dv) and with one state for a group of query heads. Feature maps: 2006.16236 (elu + 1), 2009.14794
(positive random features), 2402.04347 (Hedgehog's softmax of both signs).

The form of the file is that of sdpa.npz. Arrays: query (B, H, T, Dk), key, value, decay, beta, a, b, initial_state, and
the arrays of the feature map; cotangents `dout` and `dstate`; expected are `out`, `state` and `grad_<input>`.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32
B, H, HKV, DK, DV = 2, 4, 2, 3, 5
FOUR_RULES = {
    "linear": {"rule": "linear"},
    "gated": {"rule": "gated"},
    "gated by dim": {"rule": "gated"},
    "delta": {"rule": "delta"},
    "gated delta": {"rule": "gated_delta"},
    "gated delta by dim": {"rule": "gated_delta", "scale": 0.75},
}
CASES = {
    **FOUR_RULES,
    "elu + 1, normalized": {"rule": "linear", "feature_map": "elu+1", "normalize": True},
    "relu": {"rule": "linear", "feature_map": "relu"},
    "squared, gated": {"rule": "gated", "feature_map": "squared", "scale": 0.5},
    "exp, gated by dim, normalized": {"rule": "gated", "feature_map": "exp", "normalize": True},
    "softmax, delta": {"rule": "delta", "feature_map": "softmax"},
    "FAVOR, normalized": {"rule": "linear", "normalize": True},
    "Hedgehog, gated, normalized": {"rule": "gated", "normalize": True},
    "generalized delta": {},
    "generalized delta, gated": {"scale": 0.75},
    "generalized delta, gated by dim": {},
}
ELEMENTWISE = {
    "elu+1": lambda x: torch.nn.functional.elu(x) + 1,
    "relu": torch.relu,
    "squared": torch.square,
    "exp": torch.exp,
    "softmax": lambda x: torch.softmax(x, dim=-1),
}
FEATURES = 4


def arrays_of(name, rng):
    """Inputs on a grid of 64ths, keys of about length 1, decays from 1 to e^-4."""
    T = 20 if name in FOUR_RULES else 10
    shapes = {"query": (B, H, T, DK), "key": (B, HKV, T, DK), "value": (B, HKV, T, DV),
              "initial_state": (B, HKV, DK, DV), "dout": (B, H, T, DV), "dstate": (B, HKV, DK, DV)}  # fmt: skip
    made = {name: np.round(64 * rng.standard_normal(shape)) / 64 for name, shape in shapes.items()}
    made["key"] = np.round(64 * made["key"] / np.linalg.norm(made["key"], axis=-1, keepdims=True)) / 64
    if "gated" in name.replace("generalized", ""):
        shape = (B, HKV, T, DK) if "dim" in name else (B, HKV, T)
        made["decay"] = -np.round(64 * 4 * rng.random(shape) ** 3) / 64
    if "delta" in name and "generalized" not in name:
        made["beta"] = np.round(64 * rng.random((B, HKV, T))) / 64
    if "generalized" in name:  # of RWKV-7: the removal key of length 1, and its in-context learning rates
        removal = rng.standard_normal((B, HKV, T, DK))
        removal /= np.linalg.norm(removal, axis=-1, keepdims=True)
        made["a"] = -np.round(64 * removal) / 64
        made["b"] = np.round(64 * removal * rng.random((B, HKV, T, DK))) / 64
    if "FAVOR" in name:
        made["projection"] = np.round(64 * rng.standard_normal((FEATURES, DK))) / 64
    if "Hedgehog" in name:
        made["query_weight"] = np.round(64 * rng.standard_normal((H, FEATURES, DK))) / 64
        made["key_weight"] = np.round(64 * rng.standard_normal((HKV, FEATURES, DK))) / 64
    if "normalized" in name:  # the sum of the keys before the first step is positive, as features are
        rows = {"projection": FEATURES, "query_weight": 2 * FEATURES}
        shape = (B, HKV, next((rows[n] for n in rows if n in made), DK), DV + 1)
        made["initial_state"] = 1 + np.round(64 * rng.random(shape)) / 64
        made["dstate"] = np.round(64 * rng.standard_normal(shape)) / 64
    return made


def features(given, side, feature_map):
    """The queries or keys after the feature map."""
    x = given[side]
    if "projection" in given:
        y = x / DK**0.25
        w = given["projection"]
        return torch.exp(y @ w.mT - y.square().sum(-1, keepdim=True) / 2) / len(w) ** 0.5
    if f"{side}_weight" in given:
        y = x @ given[f"{side}_weight"].mT
        return torch.cat([torch.softmax(y, dim=-1), torch.softmax(-y, dim=-1)], dim=-1)
    return x if feature_map is None else ELEMENTWISE[feature_map](x)


def attended(given, scale=None, feature_map=None, normalize=False, **_):
    """The outputs (B, H, T, Dv) and the last state."""
    S, out = given["initial_state"], []
    queries, keys = features(given, "query", feature_map), features(given, "key", feature_map)
    mapped = feature_map is not None or normalize or "a" in given
    scale = (1.0 if mapped else DK**-0.5) if scale is None else scale
    values = given["value"]
    if normalize:
        values = torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)
    for t in range(keys.shape[2]):
        k, v, before = keys[:, :, t], values[:, :, t], S
        if "decay" in given:
            factor = given["decay"][:, :, t].exp()
            S = S * (factor[..., None] if factor.ndim == 3 else factor[..., None, None])
        if "beta" in given:
            v = given["beta"][:, :, t, None] * (v - torch.einsum("bhkv,bhk->bhv", S, k))
        if "a" in given:
            read = torch.einsum("bhkv,bhk->bhv", before, given["a"][:, :, t])
            S = S + torch.einsum("bhk,bhv->bhkv", given["b"][:, :, t], read)
        S = S + torch.einsum("bhk,bhv->bhkv", k, v)
        shared = S.repeat_interleave(H // HKV, dim=1)
        o = torch.einsum("bhkv,bhk->bhv", shared, queries[:, :, t])
        out.append(o[..., :-1] / o[..., -1:] if normalize else scale * o)
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

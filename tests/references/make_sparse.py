"""Make sparse.npz: sparsemax, entmax, and attention by them and by chosen keys, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_sparse.py`.

PyTorch has no such functions. Sparsemax is algorithm 1 of arXiv:1602.02068, entmax with alpha = 1.5 algorithm 2 of
arXiv:1905.05702, both by sorting; their gradients are what autograd makes of the formula of the threshold. Hard
attention: p = softmax(s); "gumbel" is `torch.nn.functional.gumbel_softmax` of arXiv:1611.01144 with given noise,
"straight_through" its variant with hard=True, in the words y_hard - y_soft.detach() + y_soft.

The form of the file is that of sdpa.npz. Inputs are x (4, 9), or query (B, H, T, D), key, value, the boolean
`attn_mask`, and Gumbel `noise`; cotangents are `dout` and, for hard attention, `dlog_prob` and `dentropy`; expected are
`out`, `log_prob`, `entropy` and `grad_<input>`.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32
B, H, T, S, D, Dv = 2, 3, 4, 7, 5, 6


def sparsemax(z):
    ordered = z.sort(-1, descending=True).values
    k = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    sums = ordered.nan_to_num(neginf=-1e9).cumsum(-1)
    size = (1 + k * ordered > sums).sum(-1, keepdim=True)
    return (z - (sums.gather(-1, size - 1) - 1) / size).clamp(min=0)


def entmax(z):
    z = z / 2
    ordered = z.sort(-1, descending=True).values.nan_to_num(neginf=-1e4)
    k = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    mean, squares = ordered.cumsum(-1) / k, (ordered**2).cumsum(-1) / k
    tau = mean - ((1 - k * (squares - mean**2)) / k).clamp(min=1e-30).sqrt()
    size = (tau.detach() <= ordered.detach()).sum(-1, keepdim=True)
    return (z - tau.gather(-1, size - 1)).clamp(min=0) ** 2


def attention(rule):
    def run(given, options):
        return {"out": rule(scores_of(given, options)) @ given["value"]}

    return run


def scores_of(given, options):
    scores = options.get("scale", D**-0.5) * given["query"] @ given["key"].mT
    return scores.masked_fill(~given["attn_mask"], -torch.inf) if "attn_mask" in given else scores


def hard(given, options):
    scores = scores_of(given, options)
    logs = scores.log_softmax(-1)
    if options["estimator"] == "top_k":
        chosen, places = scores.topk(options["k"], -1)
        weights = torch.zeros_like(scores).scatter(-1, places, chosen.softmax(-1))
    else:
        noisy = scores + given["noise"]
        places = noisy.argmax(-1, keepdim=True)
        one_hot = torch.zeros_like(scores).scatter(-1, places, 1.0)
        soft = (noisy / options.get("temperature", 1.0)).softmax(-1)
        weights = {"gumbel": soft, "straight_through": one_hot - soft.detach() + soft, "reinforce": one_hot}[
            options["estimator"]
        ]
    log_prob = logs.gather(-1, places).logsumexp(-1)
    entropy = -(logs.exp() * logs.clamp(min=-1e9)).sum(-1)
    return {"out": weights @ given["value"], "log_prob": log_prob, "entropy": entropy}


FUNCTIONS = {
    "sparsemax": lambda given, options: {"out": sparsemax(given["x"])},
    "entmax": lambda given, options: {"out": entmax(given["x"])},
    "sparsemax_attention": attention(sparsemax),
    "entmax_attention": attention(entmax),
    "hard_attention": hard,
}
CASES = {
    "sparsemax": {},
    "entmax": {},
    "sparsemax_attention": {},
    "sparsemax_attention, mask": {"scale": 1.0},
    "entmax_attention": {"scale": 1.5},
    "entmax_attention, mask": {},
    "hard_attention, reinforce": {"estimator": "reinforce"},
    "hard_attention, gumbel": {"estimator": "gumbel", "temperature": 0.5},
    "hard_attention, gumbel, mask": {"estimator": "gumbel", "scale": 1.0},
    "hard_attention, straight_through": {"estimator": "straight_through", "temperature": 0.75},
    "hard_attention, top_k": {"estimator": "top_k", "k": 3},
}


def arrays_of(name, options, rng):
    def draw(*shape):
        return np.round(64 * rng.standard_normal(shape)) / 64

    if "attention" not in name:
        return {"x": draw(4, 9), "dout": draw(4, 9)}
    arrays = {"query": draw(B, H, T, D), "key": draw(B, H, S, D), "value": draw(B, H, S, Dv), "dout": draw(B, H, T, Dv)}
    if "mask" in name:
        arrays["attn_mask"] = rng.random((T, S)) < 0.6
    if name.startswith("hard"):
        arrays |= {"dlog_prob": draw(B, H, T), "dentropy": draw(B, H, T)}
        if options["estimator"] != "top_k":
            arrays["noise"] = np.round(-64 * np.log(-np.log(rng.random((B, H, T, S))))) / 64
    return arrays


def results(name, options, arrays, dtype):
    """Outputs and gradients, as float64 NumPy arrays."""
    given = {n: torch.from_numpy(a).to(dtype if a.dtype == np.float64 else None) for n, a in arrays.items()}
    inputs = {n: given[n].requires_grad_() for n in ("x", "query", "key", "value") if n in given}
    found = FUNCTIONS[name.split(",")[0]](given, options)
    loss = sum((x * given[f"d{n}"]).sum() for n, x in found.items())
    grads = torch.autograd.grad(loss, list(inputs.values()))
    found |= {f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)}
    return {n: x.detach().double().numpy() for n, x in found.items()}


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, single = {}, 0.0
    for name, options in CASES.items():
        arrays = arrays_of(name, options, np.random.default_rng(zlib.crc32(name.encode())))
        expected = results(name, options, arrays, torch.float64)
        assert all(np.all(np.isfinite(array)) for array in expected.values()), name
        difference = largest_difference(results(name, options, arrays, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        stored |= packed(name, options, {**arrays, **expected})
    path = Path(__file__).with_name("sparse.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

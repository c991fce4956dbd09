"""Make positions.npz: rotations, T5's buckets, ALiBi's biases, sinusoids, relative attention, from PyTorch in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_positions.py`.

PyTorch has no such functions; each is written here from its paper:
- rotary: arXiv:2104.09864, equation 15, where a pair is a complex number and the rotation a product with e^(i m theta);
  a pair is (2n, 2n + 1) as there, or (n, n + d/2). Gradients by autograd, cotangent `dout`.
- buckets: arXiv:1910.10683, section 2.1, in floating logarithms.
- alibi: arXiv:2108.12409, section 3: a geometric sequence from 2^(-8/n) with that as its ratio.
- sinusoidal: arXiv:1706.03762, section 3.5.
- relative: arXiv:1901.02860, appendix B and the four terms (a) to (d) of section 3.3, every pair by its own distance,
  with W_q, W_kE, W_kR, W_v, u, v and the memory h of the segment before. Padding is NaN past `lengths`. Gradients by
  autograd, which is cut at the memory as the paper's stop-gradient has it.

The form of the file is that of sdpa.npz.
"""

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32

ROTARY = {
    "halves": ((2, 3, 5, 8), {}),
    "pairs": ((2, 3, 5, 8), {"interleaved": True}),
    "some features, base": ((3, 7), {"dims": 4, "base": 100.0}),
    "late pairs": ((2, 5, 6), {"interleaved": True, "offset": 3000}),
    "late halves": ((4, 16), {"offset": 70000, "base": 500000.0}),
}
BUCKETS = {
    "encoder": {"queries": 9, "keys": 300, "q_offset": 100},
    "decoder": {"queries": 4, "keys": 300, "q_offset": 290, "bidirectional": False},
    "few": {"queries": 40, "keys": 40, "buckets": 8, "max_distance": 20},
    "many": {"queries": 1, "keys": 2000, "q_offset": 1999, "buckets": 64, "max_distance": 1000, "bidirectional": False},
}
ALIBI = {"power of two": (8, 5, 7, 2), "other": (12, 3, 3, 0), "one": (1, 2, 4, 0)}
RELATIVE = {
    "no memory": {"memory": 0},
    "memory": {"memory": 3},
    "memory, causal": {"memory": 3, "is_causal": True},
    "causal": {"memory": 0, "is_causal": True},
    "memory, padding": {"memory": 2, "lengths": [7, 4]},
    "long memory, causal, padding": {"memory": 6, "is_causal": True, "lengths": [11, 8]},
}
B, T, H, D, E = 2, 5, 3, 4, 6


def drawn(rng, *shape):
    """Multiples of 1/64 with deviation 1, which float32 holds exactly."""
    return np.round(64 * rng.standard_normal(shape)) / 64


def rotary(x, dims=None, base=1e4, interleaved=False, offset=0):
    dims = x.shape[-1] if dims is None else dims
    theta = base ** (-2 * torch.arange(dims // 2, dtype=torch.float64) / dims)
    m = offset + torch.arange(x.shape[-2], dtype=torch.float64)
    rotation = torch.polar(torch.ones(len(m), dims // 2, dtype=torch.float64), m[:, None] * theta)  # e^(i m theta)
    pairs = x[..., :dims].unflatten(-1, (-1, 2) if interleaved else (2, -1))
    pairs = pairs if interleaved else pairs.mT
    z = torch.view_as_complex(pairs.contiguous()) * rotation.to(torch.complex64 if x.dtype == torch.float32 else None)
    y = torch.view_as_real(z)
    y = (y if interleaved else y.mT).flatten(-2)
    return torch.cat([y, x[..., dims:]], -1)


def buckets_of(queries, keys, q_offset=0, buckets=32, max_distance=128, bidirectional=True):
    distance = q_offset + torch.arange(queries)[:, None] - torch.arange(keys)
    found = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        found = buckets * (distance < 0)
        distance = distance.abs()
    distance = distance.clamp(min=0)
    exact = buckets // 2
    ratio = (distance.clamp(min=1).double() / exact).log() / math.log(max_distance / exact)
    coarse = exact + (ratio * (buckets - exact) + 1e-9).long()  # so that a whole number is not rounded below itself
    return found + torch.where(distance < exact, distance, coarse.clamp(max=buckets - 1))


def slopes(heads):
    power = 2 ** math.floor(math.log2(heads))
    found = [(2 ** (-8 / power)) ** n for n in range(1, power + 1)]
    return found if power == heads else found + slopes(2 * power)[0::2][: heads - power]


def alibi(num_heads, queries, keys, q_offset):
    distance = (q_offset + torch.arange(queries)[:, None] - torch.arange(keys)).abs()
    return -torch.tensor(slopes(num_heads), dtype=torch.float64)[:, None, None] * distance


def sinusoid(position, dim):
    """R of one distance: sines first, as the authors' code has it."""
    angle = position / 10_000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.cat([angle.sin(), angle.cos()])


def relative(given, memory, is_causal=False, lengths=None):
    """(B, T, E): attention over [memory; x], and its output projection."""
    x = given["x"]
    z = torch.cat([given["memory"].detach(), x], 1) if memory else x  # (B, M + T, E)
    q, k, v = ((array @ given[name].T).unflatten(-1, (H, D)) for array, name in ((x, "W_q"), (z, "W_kE"), (z, "W_v")))
    heads = []
    for h in range(H):
        scores = []
        for i in range(T):
            for j in range(memory + T):
                distance = i + memory - j
                r = (given["W_kR"] @ sinusoid(torch.tensor(float(distance)), E).to(x.dtype)).unflatten(-1, (H, D))[h]
                terms = (q[:, i, h] * k[:, j, h]).sum(-1), q[:, i, h] @ r, k[:, j, h] @ given["u"][h], given["v"][h] @ r
                hidden = (is_causal and distance < 0) or torch.zeros(B, dtype=torch.bool)
                if lengths is not None:
                    hidden = hidden | (j >= torch.tensor(lengths))
                scores.append(sum(terms).masked_fill(torch.as_tensor(hidden), -torch.inf))
        weights = (torch.stack(scores, -1).unflatten(-1, (T, memory + T)) / math.sqrt(D)).softmax(-1)  # (B, T, M + T)
        values = v[:, :, h]
        if lengths is not None:
            exists = torch.arange(memory + T) < torch.tensor(lengths)[:, None]
            values = values.masked_fill(~exists[..., None], 0.0)
        heads.append(weights @ values)
    return torch.cat(heads, -1) @ given["W_o"].T


def arrays_of_relative(rng, memory):
    shapes = {"x": (B, T, E), "u": (H, D), "v": (H, D), "W_o": (E, H * D), "dout": (B, T, E)}
    shapes |= dict.fromkeys(("W_q", "W_kE", "W_kR", "W_v"), (H * D, E))
    if memory:
        shapes["memory"] = (B, memory, E)
    return {name: drawn(rng, *shape) for name, shape in shapes.items()}


def results(function, arrays, dtype, **options):
    given = {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
    inputs = {name: x.requires_grad_() for name, x in given.items() if name not in ("dout", "memory")}
    out = function(given, **options)
    grads = torch.autograd.grad((out * given["dout"]).sum(), list(inputs.values()))
    found = {"out": out, **{f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True)}}
    return {name: x.detach().double().numpy() for name, x in found.items()}


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, single = {}, 0.0
    trained = [(f"rotary: {n}", lambda g, **o: rotary(g["x"], **o), s, o) for n, (s, o) in ROTARY.items()]
    trained += [(f"relative: {n}", relative, None, o) for n, o in RELATIVE.items()]
    for name, function, shape, options in trained:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        arrays = {"x": drawn(rng, *shape), "dout": drawn(rng, *shape)} if shape else None
        arrays = arrays or arrays_of_relative(rng, options["memory"])
        expected = results(function, arrays, torch.float64, **options)
        difference = largest_difference(results(function, arrays, torch.float32, **options), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        stored |= packed(name, options, {**arrays, **expected})
    for name, options in BUCKETS.items():
        stored |= packed(f"buckets: {name}", options, {"out": buckets_of(**options).numpy()})
    for name, sizes in ALIBI.items():
        options = dict(zip(("num_heads", "queries", "keys", "q_offset"), sizes, strict=True))
        stored |= packed(f"alibi: {name}", options, {"out": alibi(*sizes).numpy()})
    positions = [0.0, 1.0, 7.0, 5000.0, -3.0]
    made = torch.stack([sinusoid(torch.tensor(t), 10) for t in positions]).numpy()
    stored |= packed("sinusoidal: sines first", {}, {"positions": np.array(positions), "out": made})
    path = Path(__file__).with_name("positions.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(stored) // 2} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

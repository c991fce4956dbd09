"""Make location.npz: weights, contexts and gradients of location-aware attention, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_location.py`.

PyTorch has no such function. `decode` is the recurrence of arXiv:1506.07503 with the paper's names, one step after the
other; F is `torch.nn.functional.conv1d`. `sharpening` is the paper's inverse temperature; `cumulative` filters the sum
of all weights so far, as Tacotron 2 does (arXiv:1712.05884).

The form of the file is that of sdpa.npz. Parameters are W (A, Ds), V (A, Dh), b (A,), U (A, F), F (F, width), w (A,).
s (B, T, Ds) holds s_(i-1) of every step, h (B, S, Dh) the encoder's states, NaN past the `lengths`, start (B, S) the
weights before the first step. Cotangents are `dc` and `dalpha`, expected arrays `c`, `alpha` and `grad_<input>`.
"""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32
PARAMETERS = ("W", "V", "b", "U", "F", "w")


class Run(NamedTuple):
    """A decoder run of T steps over S states."""

    batch: int = 2
    steps: int = 4
    states: int = 7
    filters: int = 3
    width: int = 5
    lengths: tuple = ()
    start: str = ""  # "first": all weight on the first state; "any": numbers that are no distribution
    options: dict = {}  # noqa: RUF012 - never changed

    def arrays(self, rng):
        B, T, S, A, Ds, Dh = self.batch, self.steps, self.states, 6, 8, 9
        shapes = {"s": (B, T, Ds), "h": (B, S, Dh), "W": (A, Ds), "V": (A, Dh), "b": (A,), "U": (A, self.filters)}
        shapes |= {"F": (self.filters, self.width), "w": (A,), "dc": (B, T, Dh), "dalpha": (B, T, S)}
        arrays = {name: drawn(rng, shape) for name, shape in shapes.items()}
        arrays["w"] *= 4  # so that the weights are far from uniform
        if self.start:
            arrays["start"] = np.eye(S)[[0] * B] if self.start == "first" else drawn(rng, (B, S))
        return {**arrays, "lengths": np.array(self.lengths)} if self.lengths else arrays


CASES = {
    "run": Run(),
    "one-step": Run(steps=1, start="first"),
    "start-at-first": Run(start="first"),
    "start-anywhere": Run(start="any", lengths=(4, 7)),
    "lengths": Run(batch=3, lengths=(5, 1, 7), start="first"),
    "sharpened": Run(options={"sharpening": 2.0}),
    "width-1": Run(width=1, filters=1),
    "wider-than-the-states": Run(states=5, width=13),
    "cumulative": Run(start="first", options={"cumulative": True}),
    "cumulative-lengths": Run(batch=3, steps=9, lengths=(7, 2, 4), options={"cumulative": True, "sharpening": 0.5}),
    "63-states": Run(batch=1, steps=5, states=63, width=11),
}


def drawn(rng, shape):
    """Multiples of 1/64 with deviation 1/2, which float32 holds exactly."""
    return np.round(32 * rng.standard_normal(shape)) / 64


def decode(given, sharpening=1.0, cumulative=False):
    """All c_i (B, T, Dh) and alpha_i (B, T, S)."""
    s, h, W, V, b, U, F, w = (given[name] for name in ("s", "h", "W", "V", "b", "U", "F", "w"))
    exists = torch.ones(h.shape[:2], dtype=torch.bool)
    if "lengths" in given:
        exists = torch.arange(h.shape[1]) < given["lengths"][:, None]
    alpha = given.get("start", torch.zeros(h.shape[:2], dtype=h.dtype)) * exists
    seen, contexts, alphas = alpha, [], []
    for i in range(s.shape[1]):
        f = torch.nn.functional.conv1d(seen[:, None], F[:, None], padding=F.shape[1] // 2).mT  # (B, S, F)
        e = torch.tanh((s[:, i] @ W.T)[:, None] + h @ V.T + f @ U.T + b) @ w  # (B, S)
        alpha = torch.softmax(torch.where(exists, sharpening * e, -torch.inf), -1)
        contexts.append((alpha[..., None] * h).sum(1))
        alphas.append(alpha)
        seen = seen + alpha if cumulative else alpha
    return torch.stack(contexts, 1), torch.stack(alphas, 1)


def results(arrays, options, dtype):
    """Contexts, weights and gradients, as float64 NumPy arrays."""
    given = {n: torch.from_numpy(a).to(dtype if a.dtype == np.float64 else None) for n, a in arrays.items()}
    inputs = {n: given[n].requires_grad_() for n in ("s", "h", *PARAMETERS, "start") if n in given}
    c, alpha = decode(given, **options)
    loss = (c * given["dc"]).sum() + (alpha * given["dalpha"]).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()))
    found = {"c": c, "alpha": alpha, **{f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)}}
    return {n: x.detach().double().numpy() for n, x in found.items()}


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, single = {}, 0.0
    for name, case in CASES.items():
        arrays = case.arrays(np.random.default_rng(zlib.crc32(name.encode())))
        expected = results(arrays, case.options, torch.float64)
        difference = largest_difference(results(arrays, case.options, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        if "lengths" in arrays:
            arrays["h"][np.arange(case.states) >= arrays["lengths"][:, None]] = np.nan
        stored |= packed(name, case.options, {**arrays, **expected})
    path = Path(__file__).with_name("location.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

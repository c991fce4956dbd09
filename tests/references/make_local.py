"""Make local.npz: Luong's local attention, and gradients, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_local.py`.

PyTorch has no such function. The formulas are those of arXiv:1508.04025, section 3.2 and equations 7 to 10, with the
paper's names, written out over all source positions s = 0 .. S - 1: the softmax over those within p_t +- D, and for
local-p the Gaussian on what it gives. S is the length of the sentence. Positions are not near an integer, where one
source position enters the window and another leaves it.

The form of the file is that of sdpa.npz. Arrays: target states h_t (B, T, Dq), source states h_s (B, S, Dk), NaN past
the `lengths`; W_a (Dq, Dk), W_p (A, Dq), v_p (A,). The cotangent of the context `out` is `dout`; expected are `out`,
for local-p the positions `p`, and `grad_<input>`.
"""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32
B, T, S, Dq, A = 2, 4, 9, 5, 6


class Local(NamedTuple):
    """One alignment: `window` is the paper's D, `sigma` D / 2 unless given."""

    alignment: str
    score: str
    window: int
    sigma: float | None = None
    lengths: tuple = ()

    def arrays(self, rng):
        Dk = Dq if self.score == "dot" else 7
        shapes = {"h_t": (B, T, Dq), "h_s": (B, S, Dk), "dout": (B, T, Dk)}
        if self.score == "general":
            shapes["W_a"] = (Dq, Dk)
        if self.alignment == "predictive":
            shapes |= {"W_p": (A, Dq), "v_p": (A,)}
        arrays = {name: np.round(64 * rng.standard_normal(shape)) / 64 for name, shape in shapes.items()}
        return {**arrays, "lengths": np.array(self.lengths)} if self.lengths else arrays

    def attended(self, given):
        """The contexts (B, T, Dk) and the positions p (B, T)."""
        h_t, h_s = given["h_t"], given["h_s"]
        lengths = given["lengths"][:, None] if self.lengths else torch.tensor([[S]])  # (B, 1)
        s, p = torch.arange(S), torch.arange(T).expand(B, T)
        if self.alignment == "predictive":
            p = lengths * torch.sigmoid(torch.tanh(h_t @ given["W_p"].T) @ given["v_p"])
        scores = torch.einsum("btd,bsd->bts", h_t @ given["W_a"] if self.score == "general" else h_t, h_s)
        seen = ((s - p[..., None]).abs() <= self.window) & (s < lengths[..., None])
        align = scores.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0.0)
        if self.alignment == "predictive":
            sigma = self.sigma or self.window / 2
            align = align * torch.exp(-((s - p[..., None]) ** 2) / (2 * sigma**2))
        return align @ h_s, p


LENGTHS = (9, 4)
CASES = {
    "local-m": Local("monotonic", "dot", 2),
    "local-m, general, lengths": Local("monotonic", "general", 1, lengths=LENGTHS),
    "local-p": Local("predictive", "dot", 2),
    "local-p, general": Local("predictive", "general", 3),
    "local-p, lengths": Local("predictive", "dot", 1, lengths=LENGTHS),
    "local-p, general, lengths, sigma": Local("predictive", "general", 2, 0.75, LENGTHS),
}


def results(case, arrays, dtype):
    """Output, positions and gradients, as float64 NumPy arrays."""
    given = {n: torch.from_numpy(a).to(dtype if a.dtype == np.float64 else None) for n, a in arrays.items()}
    inputs = {n: x.requires_grad_() for n, x in given.items() if n not in ("dout", "lengths")}
    out, p = case.attended(given)
    grads = torch.autograd.grad((out * given["dout"]).sum(), list(inputs.values()))
    found = {"out": out, **{f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)}}
    if case.alignment == "predictive":
        found["p"] = p
    return {n: x.detach().double().numpy() for n, x in found.items()}


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, single = {}, 0.0
    for name, case in CASES.items():
        arrays = case.arrays(np.random.default_rng(zlib.crc32(name.encode())))
        expected = results(case, arrays, torch.float64)
        if "p" in expected:
            assert np.min(np.abs(expected["p"] - np.round(expected["p"]))) > 0.01, (name, expected["p"])
        difference = largest_difference(results(case, arrays, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        if case.lengths:
            arrays["h_s"][np.arange(S) >= arrays["lengths"][:, None]] = np.nan
        options = {n: x for n, x in case._asdict().items() if n != "lengths"}
        stored |= packed(name, options, {**arrays, **expected})
    path = Path(__file__).with_name("local.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

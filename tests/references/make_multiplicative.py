"""Make multiplicative.npz: Luong's attention with its three scores, and gradients, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_multiplicative.py`.

PyTorch has no such function. The formulas are those of arXiv:1508.04025, equations 5 to 8 and section 3.3, with the
paper's names, written out as they stand there: "general" is `torch.nn.functional.bilinear`, "concat" lays target and
source state of every pair side by side, and input feeding is a `torch.nn.LSTMCell` whose input is [y_t; h~_(t-1)].

The form of the file is that of sdpa.npz. Arrays: target states h_t (B, T, Dq), or inputs y (B, T, Dy) with the weights
of the cell; source states h_s (B, S, Dk), NaN past the `lengths`; W_a, v_a, W_c (Dq, Dk + Dq). The cotangent of what
comes out is `dout`; expected are `out`, which is h~ where there is a W_c and else the context, and `grad_<input>`.
"""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32
CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
B, T, S, Dq, Dy = 2, 3, 5, 4, 6


class Luong(NamedTuple):
    """One decoder: `output` for h~, `feeding` for a run of the cell."""

    score: str
    output: bool = False
    feeding: bool = False
    lengths: tuple = ()

    def arrays(self, rng):
        Dk, A = Dq if self.score == "dot" else 7, 8
        shapes = {"h_s": (B, S, Dk), "dout": (B, T, Dq if self.output else Dk)}
        shapes |= {"general": {"W_a": (Dq, Dk)}, "concat": {"W_a": (A, Dq + Dk), "v_a": (A,)}}.get(self.score, {})
        if self.output:
            shapes["W_c"] = (Dq, Dk + Dq)
        if self.feeding:
            rows = 4 * Dq
            shapes |= {"y": (B, T, Dy), "weight_ih": (rows, Dy + Dq), "weight_hh": (rows, Dq)}
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        else:
            shapes["h_t"] = (B, T, Dq)
        arrays = {name: np.round(64 * rng.standard_normal(shape)) / 64 for name, shape in shapes.items()}
        return {**arrays, "lengths": np.array(self.lengths)} if self.lengths else arrays

    def attended(self, h_t, given):
        """The context of one target state (B, Dq), or its attentional state."""
        h_s = given["h_s"]
        scores = torch.stack([self.scored(h_t, h_s[:, s], given) for s in range(S)], dim=-1)  # (B, S)
        if self.lengths:
            scores = scores.masked_fill(torch.arange(S) >= given["lengths"][:, None], -torch.inf)
        c = (scores.softmax(-1)[:, :, None] * h_s).sum(1)
        return torch.tanh(torch.cat([c, h_t], -1) @ given["W_c"].T) if self.output else c

    def scored(self, h_t, h_s, given):
        if self.score == "dot":
            return (h_t * h_s).sum(-1)
        if self.score == "general":
            return torch.nn.functional.bilinear(h_t, h_s, given["W_a"][None])[:, 0]
        return torch.tanh(torch.cat([h_t, h_s], -1) @ given["W_a"].T) @ given["v_a"]

    def run(self, given):
        """(B, T, N) of all steps."""
        if not self.feeding:
            return torch.stack([self.attended(given["h_t"][:, t], given) for t in range(T)], dim=1)
        cell = torch.nn.LSTMCell(Dy + Dq, Dq).to(given["y"].dtype)
        parameters = {name: given[name] for name in CELL}
        h = c = fed = torch.zeros(B, Dq, dtype=given["y"].dtype)
        outs = []
        for t in range(T):
            x = torch.cat([given["y"][:, t], fed], -1)
            h, c = torch.func.functional_call(cell, parameters, (x, (h, c)))
            fed = self.attended(h, given)
            outs.append(fed)
        return torch.stack(outs, dim=1)


LENGTHS = (5, 2)
CASES = {
    **{score: Luong(score) for score in ("dot", "general", "concat")},
    **{f"{score}, lengths": Luong(score, lengths=LENGTHS) for score in ("dot", "general", "concat")},
    **{f"{score}, attentional": Luong(score, output=True) for score in ("dot", "general", "concat")},
    **{f"{score}, fed": Luong(score, True, True, LENGTHS) for score in ("dot", "general", "concat")},
}


def results(case, arrays, dtype):
    """Output and gradients, as float64 NumPy arrays."""
    given = {n: torch.from_numpy(a).to(dtype if a.dtype == np.float64 else None) for n, a in arrays.items()}
    inputs = {n: x.requires_grad_() for n, x in given.items() if n not in ("dout", "lengths")}
    out = case.run(given)
    grads = torch.autograd.grad((out * given["dout"]).sum(), list(inputs.values()))
    found = {"out": out, **{f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)}}
    return {n: x.detach().double().numpy() for n, x in found.items()}


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, single = {}, 0.0
    for name, case in CASES.items():
        arrays = case.arrays(np.random.default_rng(zlib.crc32(name.encode())))
        expected = results(case, arrays, torch.float64)
        difference = largest_difference(results(case, arrays, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        if case.lengths:
            arrays["h_s"][np.arange(S) >= arrays["lengths"][:, None]] = np.nan
        stored |= packed(name, {"score": case.score, "output": case.output}, {**arrays, **expected})
    path = Path(__file__).with_name("multiplicative.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

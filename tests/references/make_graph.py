"""Make graph.npz: graph attention of GAT and GATv2, and gradients, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_graph.py`.

PyTorch has no such layer. The formulas are written out as the papers have them, node by node and head by head: for GAT
equations 1 to 6 of arXiv:1710.10903, a^T LeakyReLU'd over [W h_i; W h_j] laid side by side, softmax over the neighbors
N_i of each node, heads side by side or averaged; for GATv2 equation 7 of arXiv:2105.14491, whose W [h_i; h_j] is one
matrix on both states. Features of edges, where there are any, stand third.

The form of the file is that of sdpa.npz. Arrays: nodes h (N, D), edges (2, E) source above target, features f (E, Df)
or none; W (H, F, D) for GAT, (H, F, 2 D) or (H, F, 2 D + Df) for GATv2; W_e (H, F, Df) for GAT with edges; a (H, F),
(H, 2 F) or (H, 3 F); b. The cotangent of what comes out is `dout`; expected are `out` and `grad_<input>`.
"""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32
N, D, F, H, Df = 6, 5, 4, 3, 2
# Self-loops as in both papers, except for node 5, in which no edge ends; the edge from 0 to 1 is given twice.
EDGES = np.array([[0, 3, 0, 2, 4, 1, 5, 0, 1, 2, 3, 4], [1, 1, 1, 0, 2, 4, 3, 0, 1, 2, 3, 4]])


class Graph(NamedTuple):
    """One layer."""

    score: str
    concat: bool = True
    edges: bool = False
    slope: float = 0.2

    def arrays(self, rng):
        parts = (3 if self.edges else 2) if self.score == "gat" else 1
        columns = D if self.score == "gat" else 2 * D + Df * self.edges
        shapes = {"h": (N, D), "W": (H, F, columns), "a": (H, parts * F), "b": (H * F if self.concat else F,)}
        shapes["dout"] = (N, *shapes["b"])
        if self.edges:
            shapes["f"] = (EDGES.shape[1], Df)
            shapes |= {"W_e": (H, F, Df)} if self.score == "gat" else {}
        arrays = {name: np.round(64 * rng.standard_normal(shape)) / 64 for name, shape in shapes.items()}
        return {**arrays, "edges": EDGES}

    def run(self, given):
        heads = [torch.stack([self.node(i, n, given) for i in range(N)]) for n in range(H)]
        joined = torch.cat(heads, -1) if self.concat else sum(heads) / H
        return joined + given["b"]

    def node(self, i, n, given):
        """The output of head n for node i: (F,)."""
        h, W = given["h"], given["W"][n]
        of_source = W if self.score == "gat" else W[:, D : 2 * D]
        incoming = [e for e in range(EDGES.shape[1]) if EDGES[1, e] == i]
        if not incoming:
            return torch.zeros(F, dtype=h.dtype)
        scores = torch.stack([self.scored(i, EDGES[0, e], e, n, given) for e in incoming])
        values = torch.stack([of_source @ h[EDGES[0, e]] for e in incoming])
        return scores.softmax(0) @ values

    def scored(self, i, j, e, n, given):
        h, W, a = given["h"], given["W"][n], given["a"][n]
        if self.score == "gat":
            parts = [W @ h[i], W @ h[j], *([given["W_e"][n] @ given["f"][e]] if self.edges else [])]
            return torch.nn.functional.leaky_relu(a @ torch.cat(parts), self.slope)
        inputs = torch.cat([h[i], h[j], *([given["f"][e]] if self.edges else [])])
        return a @ torch.nn.functional.leaky_relu(W @ inputs, self.slope)


CASES = {
    f"{score}{', mean' if not concat else ''}{', edges' if edges else ''}": Graph(score, concat, edges, slope)
    for score in ("gat", "gatv2")
    for concat, edges, slope in ((True, False, 0.2), (False, False, 0.1), (True, True, 0.2))
}


def results(case, arrays, dtype):
    """Output and gradients, as float64 NumPy arrays."""
    given = {n: torch.from_numpy(x).to(dtype if x.dtype == np.float64 else None) for n, x in arrays.items()}
    inputs = {n: x.requires_grad_() for n, x in given.items() if n not in ("dout", "edges")}
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
        options = {"score": case.score, "concat": case.concat, "negative_slope": case.slope}
        stored |= packed(name, options, {**arrays, **expected})
    path = Path(__file__).with_name("graph.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

"""Make transformer_xl.npz: logits, memories and gradients of Transformer-XL in float64, by PyTorch's autograd.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_transformer_xl.py`.

Written from the paper (arXiv:1901.02860, section 3 and appendix B): distances from the largest down, the shift of rows
that aligns them, memories without gradient. Three segments in a row, of which the memory keeps less than all. With
`pre_norm` each attention is given normed states, and the memory holds those.

The form of the file is that of sdpa.npz. Expected are `logits.<segment>`, `memory.<block>` after the last segment, and
`grad_<parameter>` of the sum of logits * dout over all segments.
"""

import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32
V, B, SEGMENTS, E, HIDDEN, LAYERS = 11, 2, (4, 3, 4), 6, 7, 2


class Model(NamedTuple):
    """The sizes and choices of a model."""

    num_heads: int = 3
    head_dim: int = 2
    memory: int = 5
    pre_norm: bool = False
    activation: str = "relu"
    tie_embeddings: bool = True

    def options(self):
        return {**self._asdict(), "dim": E, "num_layers": LAYERS, "hidden_dim": HIDDEN, "vocab_size": V}

    def shapes(self):
        """Of all parameters, by attnarray's names."""
        found, width = {"tokens.token.weight": (V, E)}, self.num_heads * self.head_dim
        for n in range(LAYERS):
            block = {f"attention.{name}.weight": (width, E) for name in ("query", "key", "value", "position")}
            block |= {
                f"attention.{name}": (self.num_heads, self.head_dim) for name in ("content_bias", "position_bias")
            }
            block |= {"attention.out.weight": (E, width), "feed_forward.hidden.weight": (HIDDEN, E)}
            block |= {"feed_forward.hidden.bias": (HIDDEN,), "feed_forward.out.weight": (E, HIDDEN)}
            block |= {"feed_forward.out.bias": (E,)}
            block |= {
                f"{name}_norm.{part}": (E,) for name in ("attention", "feed_forward") for part in ("weight", "bias")
            }
            found |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
        if self.pre_norm:
            found |= {"norm.weight": (E,), "norm.bias": (E,)}
        return {**found, "logits.bias": (V,), **({} if self.tie_embeddings else {"logits.weight": (V, E)})}

    def attend(self, p, x, memory):
        """(B, T, E) of the inputs and their memory."""
        T, z = x.shape[1], torch.cat([memory, x], 1)
        K = z.shape[1]
        q, k, v = (
            (y @ p[f"{name}.weight"].T).unflatten(-1, (self.num_heads, self.head_dim))
            for y, name in ((x, "query"), (z, "key"), (z, "value"))
        )
        distances = torch.arange(K - 1, -1, -1, dtype=x.dtype)
        angles = distances[:, None] / 10_000.0 ** (torch.arange(0, E, 2, dtype=x.dtype) / E)
        r = torch.cat([angles.sin(), angles.cos()], -1) @ p["position.weight"].T
        r = r.unflatten(-1, (self.num_heads, self.head_dim))  # (K, H, D)
        content = torch.einsum("bthd,bkhd->bhtk", q + p["content_bias"], k)
        position = shifted(torch.einsum("bthd,khd->bhtk", q + p["position_bias"], r))
        scores = (content + position) / math.sqrt(self.head_dim)
        future = torch.ones(T, K, dtype=torch.bool).triu(K - T + 1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return torch.einsum("bhtk,bkhd->bthd", weights, v).flatten(2) @ p["out.weight"].T

    def block(self, p, x, memory):
        def norm(name, y):
            return torch.nn.functional.layer_norm(y, (E,), p[f"{name}_norm.weight"], p[f"{name}_norm.bias"])

        def feed(y):
            hidden = y @ p["feed_forward.hidden.weight"].T + p["feed_forward.hidden.bias"]
            active = getattr(torch.nn.functional, self.activation)(hidden)
            return active @ p["feed_forward.out.weight"].T + p["feed_forward.out.bias"]

        own = below(p, "attention.")
        given = norm("attention", x) if self.pre_norm else x
        if self.pre_norm:
            x = x + self.attend(own, given, memory)
            return x + feed(norm("feed_forward", x)), given
        x = norm("attention", x + self.attend(own, given, memory))
        return norm("feed_forward", x + feed(x)), given

    def run(self, p, tokens, memory):
        x, after = math.sqrt(E) * p["tokens.token.weight"][tokens], []
        for n in range(LAYERS):
            x, given = self.block(below(p, f"blocks.{n}."), x, memory[n])
            both = torch.cat([memory[n], given], 1)
            after.append(both[:, max(0, both.shape[1] - self.memory) :].detach())
        if self.pre_norm:
            x = torch.nn.functional.layer_norm(x, (E,), p["norm.weight"], p["norm.bias"])
        weight = p["tokens.token.weight"] if self.tie_embeddings else p["logits.weight"]
        return x @ weight.T + p["logits.bias"], after

    def results(self, weights, inputs, dtype):
        p = {name: torch.from_numpy(array).to(dtype).requires_grad_() for name, array in weights.items()}
        memory, found, loss = [torch.zeros(B, 0, E, dtype=dtype)] * LAYERS, {}, 0.0
        for n in range(len(SEGMENTS)):
            logits, memory = self.run(p, torch.from_numpy(inputs[f"tokens.{n}"]), memory)
            loss = loss + (logits * torch.from_numpy(inputs[f"dout.{n}"]).to(dtype)).sum()
            found[f"logits.{n}"] = logits
        grads = torch.autograd.grad(loss, list(p.values()))
        found |= {f"memory.{n}": array for n, array in enumerate(memory)}
        found |= {f"grad_{name}": grad for name, grad in zip(p, grads, strict=True)}
        return {name: x.detach().double().numpy() for name, x in found.items()}


def shifted(x):
    """Row t of (B, H, T, K), by distance from K - 1 down, moved left by T - 1 - t: then by key."""
    B, H, T, K = x.shape
    padded = torch.cat([x.new_zeros(B, H, T, 1), x], -1)
    return padded.reshape(B, H, K + 1, T)[:, :, 1:].reshape(B, H, T, K)


def below(p, prefix):
    return {name.removeprefix(prefix): array for name, array in p.items() if name.startswith(prefix)}


def drawn(rng, shape):
    """Multiples of 1/64 with deviation 1, which float32 holds exactly."""
    return np.round(64 * rng.standard_normal(shape)) / 64


MODELS = {
    "as in the paper": Model(),
    "pre-norm": Model(pre_norm=True, tie_embeddings=False),
    "gelu, wide heads": Model(num_heads=2, head_dim=4, memory=3, activation="gelu"),
    "long memory": Model(memory=20, tie_embeddings=False),
    "no memory": Model(memory=0, pre_norm=True),
}


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, single = {}, 0.0
    for name, model in MODELS.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        weights = {n: drawn(rng, shape) / 2 for n, shape in model.shapes().items()}
        inputs = {f"tokens.{n}": rng.integers(V, size=(B, T)) for n, T in enumerate(SEGMENTS)}
        inputs |= {f"dout.{n}": drawn(rng, (B, T, V)) for n, T in enumerate(SEGMENTS)}
        expected = model.results(weights, inputs, torch.float64)
        difference = largest_difference(model.results(weights, inputs, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        arrays = {**inputs, **{f"params.{n}": a for n, a in weights.items()}, **expected}
        stored |= packed(name, model.options(), arrays)
    path = Path(__file__).with_name("transformer_xl.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(MODELS)} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

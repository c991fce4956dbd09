"""Make transformer.npz: outputs and gradients of PyTorch's Transformer modules in float64, by PyTorch's autograd.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_transformer.py`.

Of `torch.nn.TransformerEncoder`, `TransformerDecoder` and of a model of `torch.nn.Transformer` between embeddings and
tied logits: norms before and after, relu and gelu, with and without the last norm, masks, padding on both sides.

The form of the file is that of sdpa.npz, the names of parameters are those of attnarray ("params.blocks.0.attention.
query.weight" ...): `in_proj_weight` is the weights of query, key and value, one above the other. Masks are True where a
key is seen. Expected are `out`, `states.<n>` of each layer, and `grad_<input>` of the sum of out * dout.
"""

import itertools
import math
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32
B, T, S, E, H, HIDDEN, LAYERS = 2, 4, 5, 6, 3, 7, 2
SOURCES, TARGETS = 11, 9  # vocabularies
NAMES = {
    "self_attn": "attention",
    "multihead_attn": "cross",
    "linear1": "feed_forward.hidden",
    "linear2": "feed_forward.out",
    "out_proj": "out",
    "layers": "blocks",
}
NORMS = {
    "encoder": {"norm1": "attention_norm", "norm2": "feed_forward_norm"},
    "decoder": {"norm1": "attention_norm", "norm2": "cross_norm", "norm3": "feed_forward_norm"},
}


class Module(NamedTuple):
    """The arguments of a module and of its call."""

    kind: str
    pre_norm: bool
    activation: str
    final_norm: bool
    masked: bool

    def options(self):
        sizes = {"dim": E, "num_heads": H, "hidden_dim": HIDDEN, "num_layers": LAYERS}
        return {**sizes, "pre_norm": self.pre_norm, "activation": self.activation, "final_norm": self.final_norm}

    def built(self):
        """The module of PyTorch, without dropout."""
        arguments = {"d_model": E, "nhead": H, "dim_feedforward": HIDDEN, "dropout": 0.0, "batch_first": True}
        arguments |= {"activation": self.activation, "norm_first": self.pre_norm}
        norm = torch.nn.LayerNorm(E) if self.final_norm else None
        if self.kind == "encoder":
            layer = torch.nn.TransformerEncoderLayer(**arguments)
            return torch.nn.TransformerEncoder(layer, LAYERS, norm, enable_nested_tensor=False)
        if self.kind == "decoder":
            return torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(**arguments), LAYERS, norm)
        sizes = {"num_encoder_layers": LAYERS, "num_decoder_layers": LAYERS}
        module = torch.nn.Module()
        module.both = torch.nn.Transformer(**arguments, **sizes)
        module.source, module.target = torch.nn.Embedding(SOURCES, E), torch.nn.Embedding(TARGETS, E)
        return module

    def inputs(self, rng):
        """Inputs that are no parameters, with masks; True is visible."""
        found = {}
        if self.kind == "model":
            found = {"source": rng.integers(SOURCES, size=(B, S)), "target": rng.integers(TARGETS, size=(B, T))}
            found |= {"source_lengths": np.array([S, 3]), "target_lengths": np.array([T - 1, T])}
            return {**found, "dout": drawn(rng, (B, T, TARGETS))}
        found = {"x": drawn(rng, (B, T, E)), "dout": drawn(rng, (B, T, E))}
        if self.kind == "decoder":
            found["memory"] = drawn(rng, (B, S, E))
        if self.masked:
            found |= {"attn_mask": seen(rng, (T, T)), "kv_lengths": np.array([T, T - 1])}
        if self.masked and self.kind == "decoder":
            found |= {"memory_mask": seen(rng, (T, S)), "memory_lengths": np.array([S - 2, S])}
        return found

    def outputs(self, module, given):
        """The output, and that of each layer."""
        if self.kind == "model":
            return self.logits(module, given), []
        states = []
        hooks = [layer.register_forward_hook(lambda *of: states.append(of[2])) for layer in module.layers]
        if self.kind == "encoder":
            own = hidden(given.get("attn_mask"), given.get("kv_lengths"), T)
            out = module(given["x"], mask=own[0], src_key_padding_mask=own[1])
        else:
            own = hidden(given.get("attn_mask"), given.get("kv_lengths"), T)
            other = hidden(given.get("memory_mask"), given.get("memory_lengths"), S)
            masks = {"tgt_mask": own[0], "tgt_key_padding_mask": own[1]}
            masks |= {"memory_mask": other[0], "memory_key_padding_mask": other[1]}
            out = module(given["x"], given["memory"], **masks)
        for hook in hooks:
            hook.remove()
        return out, [*states[:-1], out]

    def logits(self, module, given):
        """Embeddings and sinusoids as input, tied logits as output."""
        weights = {name: getattr(module, name).weight for name in ("source", "target")}
        x, y = (math.sqrt(E) * weights[name][given[name]] for name in weights)
        x, y = x + sinusoids(S).to(x.dtype), y + sinusoids(T).to(y.dtype)
        padding = {
            name: hidden(None, given[f"{name}_lengths"], size)[1] for name, size in (("source", S), ("target", T))
        }
        causal = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
        states = module.both(
            x, y, tgt_mask=causal, src_key_padding_mask=padding["source"], tgt_key_padding_mask=padding["target"],
            memory_key_padding_mask=padding["source"],
        )  # fmt: skip
        return states @ weights["target"].T

    def results(self, weights, inputs, dtype):
        """Output, states and gradients by attnarray's names, as float64 NumPy arrays."""
        module = self.built().to(dtype).train()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(weights[name]))
        given = {n: torch.from_numpy(a).to(dtype if a.dtype == np.float64 else None) for n, a in inputs.items()}
        wanted = {n: given[n].requires_grad_() for n in ("x", "memory") if n in given}
        out, states = self.outputs(module, given)
        wanted |= dict(module.named_parameters())
        grads = torch.autograd.grad((out * given["dout"]).sum(), list(wanted.values()))
        found = {"out": out, **{f"states.{n}": state for n, state in enumerate(states)}}
        found = {n: x.detach().double().numpy() for n, x in found.items()}
        for name, grad in zip(wanted, grads, strict=True):
            found |= {f"grad_{n}": a for n, a in self.renamed(name, grad.double().numpy()).items()}
        return found

    def renamed(self, name, array):
        """An array of PyTorch by attnarray's names: three of them where PyTorch has query, key and value in one."""
        if name in ("x", "memory"):
            return {name: array}
        if name in ("source.weight", "target.weight"):
            return {f"params.{name.removesuffix('.weight')}.token.weight": array}
        kind, parts = self.kind, name.split(".")
        if kind == "model":
            kind, parts = parts[1], parts[1:]
        parts = [NORMS[kind].get(part, NAMES.get(part, part)) for part in parts]
        if "in_proj" not in parts[-1]:
            return {".".join(["params", *parts]): array}
        pieces = zip(("query", "key", "value"), np.split(array, 3), strict=True)
        return {".".join(["params", *parts[:-1], n, parts[-1].removeprefix("in_proj_")]): a for n, a in pieces}


def hidden(mask, lengths, size):
    """Masks as in PyTorch: True masks."""
    padding = None if lengths is None else torch.arange(size)[None, :] >= lengths[:, None]
    return None if mask is None else ~mask, padding


def seen(rng, shape):
    """A mask with the first key of each row."""
    mask = rng.random(shape) < 0.6
    mask[:, 0] = True
    return mask


def sinusoids(count):
    angles = torch.arange(count, dtype=torch.float64)[:, None] / 10_000.0 ** (
        torch.arange(0, E, 2, dtype=torch.float64) / E
    )
    return torch.stack([angles.sin(), angles.cos()], -1).reshape(count, E)


def modules():
    """All configurations by name."""
    found = {}
    for n, (pre, active) in enumerate(itertools.product((False, True), ("relu", "gelu"))):
        order = f"{'pre' if pre else 'post'}-norm, {active}"
        for kind in ("encoder", "decoder"):
            masked = n % 2 == (kind == "decoder")
            found[f"{kind}, {order}"] = Module(kind, pre, active, pre or masked, masked)
            found[f"{kind}, {order}, other masks"] = Module(kind, pre, active, not (pre or masked), not masked)
        found[f"model, {order}"] = Module("model", pre, active, True, True)
    return found


def drawn(rng, shape):
    """Multiples of 1/64 with deviation 1, which float32 holds exactly."""
    return np.round(64 * rng.standard_normal(shape)) / 64


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    warnings.filterwarnings("ignore", "enable_nested_tensor")
    stored, single = {}, 0.0
    for name, module in modules().items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        inputs = module.inputs(rng)
        weights = {n: drawn(rng, p.shape) / 2 for n, p in module.built().named_parameters()}
        expected = module.results(weights, inputs, torch.float64)
        difference = largest_difference(module.results(weights, inputs, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        params = {}
        for weight in weights:
            params |= module.renamed(weight, weights[weight])
        stored |= packed(name, module.options(), {**inputs, **params, **expected})
    path = Path(__file__).with_name("transformer.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(modules())} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

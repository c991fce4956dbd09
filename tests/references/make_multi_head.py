"""Make multi_head.npz: outputs, weights and gradients of torch.nn.MultiheadAttention in float64, by PyTorch's autograd.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_multi_head.py`.

Every form of `key_padding_mask` (none, boolean, float) meets every form of `attn_mask` (none, boolean and float of
(T, S) and of (B H, T, S), causal); `bias`, `kdim` and `vdim`, `batch_first`, `add_zero_attn` and self-attention go
along in turns. A few more have no batch axis, or `add_bias_kv`.

The form of the file is that of sdpa.npz. Inputs, masks and outputs are in PyTorch's form. Parameters are called
"params.query.weight" and so on: `in_proj_weight` is those of query, key and value, one above the other. Expected are
`out`, `weights` (*batch, H, T, S + what was added), `mean_weights`, and `grad_<input>`, also for a float `attn_mask`.
"""

import itertools
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32
MASKS = ("none", "bool", "float", "bool per head", "float per head", "causal")
B, T, S, E, H, KDIM, VDIM = 2, 4, 5, 6, 3, 7, 8


class Module(NamedTuple):
    """The arguments of a module and of its call."""

    padding: str = "none"
    mask: str = "none"
    bias: bool = True
    own_widths: bool = False
    batch_first: bool = True
    add_zero_attn: bool = False
    add_bias_kv: bool = False
    self_attention: bool = False
    batched: bool = True

    @property
    def keys(self):
        return T if self.self_attention else S

    def options(self):
        names = ("bias", "batch_first", "add_zero_attn", "add_bias_kv")
        sizes = {"kdim": KDIM, "vdim": VDIM} if self.own_widths else {}
        return {**{name: getattr(self, name) for name in names}, **sizes}

    def arrays(self, rng):
        """The arrays by name, and the cotangent of the output."""
        inputs = {"query": (T, E)}
        kdim, vdim = (KDIM, VDIM) if self.own_widths else (E, E)
        if not self.self_attention:
            inputs |= {"key": (S, kdim), "value": (S, vdim)}
        shapes = {name: self.laid_out(shape) for name, shape in {**inputs, "dout": (T, E)}.items()}
        for part, width in (("query", E), ("key", kdim), ("value", vdim), ("out", E)):
            shapes[f"params.{part}.weight"] = (E, width)
            if self.bias:
                shapes[f"params.{part}.bias"] = (E,)
        if self.add_bias_kv:
            shapes |= {"bias_k": (1, 1, E), "bias_v": (1, 1, E)}
        sizes = {name: 0.5 if name.startswith("params") else 1.0 for name in shapes}
        return {**{name: sizes[name] * drawn(rng, shape) for name, shape in shapes.items()}, **self.masks(rng)}

    def laid_out(self, shape):
        if not self.batched:
            return shape
        return (B, *shape) if self.batch_first else (shape[0], B, shape[1])

    def masks(self, rng):
        """True masks, as in PyTorch; the first key is always visible."""
        batch = (B,) if self.batched else ()
        found = {}
        if self.padding != "none":
            hidden = rng.random((*batch, self.keys)) < 0.3
            hidden[..., 0] = False
            found["key_padding_mask"] = hidden if self.padding == "bool" else np.where(hidden, -np.inf, 0.5)
        if self.mask == "causal":
            found["attn_mask"] = np.triu(np.full((T, self.keys), -np.inf), 1)
        elif self.mask != "none":
            shape = ((B if self.batched else 1) * H, T, self.keys) if "per head" in self.mask else (T, self.keys)
            hidden = rng.random(shape) < 0.3
            hidden[..., 0] = False
            found["attn_mask"] = hidden if "bool" in self.mask else np.where(hidden, -np.inf, drawn(rng, shape))
        return found

    def results(self, arrays, dtype):
        """Output, weights and gradients, as float64 NumPy arrays."""
        given = {n: torch.from_numpy(a).to(dtype if a.dtype == np.float64 else None) for n, a in arrays.items()}
        constants = ("dout", "key_padding_mask") if self.mask != "causal" else ("dout", "key_padding_mask", "attn_mask")
        inputs = {n: x.requires_grad_() for n, x in given.items() if n not in constants and x.dtype == dtype}
        module = torch.nn.MultiheadAttention(E, H, **self.options()).to(dtype)
        query = given["query"]
        call = (query, given.get("key", query), given.get("value", query))
        options = {name: given.get(name) for name in ("key_padding_mask", "attn_mask")}
        options |= {"average_attn_weights": False, "is_causal": self.mask == "causal"}
        out, weights = torch.func.functional_call(module, self.parameters(given), call, options)
        _, mean = torch.func.functional_call(
            module, self.parameters(given), call, {**options, "average_attn_weights": True}
        )
        grads = torch.autograd.grad((out * given["dout"]).sum(), list(inputs.values()))
        found = {"out": out, "weights": weights, "mean_weights": mean}
        found |= {f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)}
        return {n: x.detach().double().numpy() for n, x in found.items()}

    def parameters(self, given):
        """By PyTorch's names."""
        weights = {part: given[f"params.{part}.weight"] for part in ("query", "key", "value", "out")}
        if self.own_widths:
            found = {f"{part[0]}_proj_weight": weights[part] for part in ("query", "key", "value")}
        else:
            found = {"in_proj_weight": torch.cat([weights[part] for part in ("query", "key", "value")])}
        if self.bias:
            biases = [given[f"params.{part}.bias"] for part in ("query", "key", "value")]
            found |= {"in_proj_bias": torch.cat(biases), "out_proj.bias": given["params.out.bias"]}
        if self.add_bias_kv:
            found |= {name: given[name] for name in ("bias_k", "bias_v")}
        return {**found, "out_proj.weight": weights["out"]}


def modules():
    """All configurations by name."""
    found = {}
    for n, (padding, mask) in enumerate(itertools.product(("none", "bool", "float"), MASKS)):
        module = Module(padding, mask, n % 2 == 0, n // 2 % 2 == 1, n // 3 % 2 == 0, n % 5 == 3)
        found[f"{n}, padding {padding}, mask {mask}"] = module._replace(self_attention=n % 4 == 0)
    for mask in MASKS[1:]:
        found[f"no batch, mask {mask}"] = Module("bool", mask, batched=False, own_widths=mask == "causal")
    found["add_bias_kv"] = Module(add_bias_kv=True)
    found["add_bias_kv and zeros, masks"] = Module("bool", "float", add_bias_kv=True, add_zero_attn=True)
    found["add_bias_kv, batch second"] = Module("none", "bool per head", add_bias_kv=True, batch_first=False)
    return found


def drawn(rng, shape):
    """Multiples of 1/64 with deviation 1, which float32 holds exactly."""
    return np.round(64 * rng.standard_normal(shape)) / 64


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask and attn_mask")
    stored, single = {}, 0.0
    for name, module in modules().items():
        arrays = module.arrays(np.random.default_rng(zlib.crc32(name.encode())))
        expected = module.results(arrays, torch.float64)
        difference = largest_difference(module.results(arrays, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        stored |= packed(name, {**module.options(), "is_causal": module.mask == "causal"}, {**arrays, **expected})
    path = Path(__file__).with_name("multi_head.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(modules())} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

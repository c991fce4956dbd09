"""Layers and models as modules of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

import attnarray
from attnarray import tree
from attnarray.bridges.tensors import to_tensor, torch
from attnarray.bridges.torch_function import differentiable
from attnarray.random import Philox


class Module(torch.nn.Module):
    """A layer or a model as a module: its parameters are those of the tree, by their paths.

    Parameters
    ----------
    layer : layer or model
        Such as `attnarray.layers.MultiHeadAttention(dim=16, num_heads=4)`.
    rng : Philox or int
        For the initial parameters.

    Examples
    --------
    >>> import torch, attnarray as aa
    >>> from attnarray.bridges import torch as bridge
    >>> module = bridge.Module(aa.layers.MultiHeadAttention(dim=16, num_heads=4))
    >>> sorted(module.state_dict())[:2]
    ['key.bias', 'key.weight']
    >>> module(torch.randn(2, 5, 16), is_causal=True).shape
    torch.Size([2, 5, 16])
    """

    def __init__(self, layer: Any, rng: Philox | int = 0) -> None:
        super().__init__()
        self.layer, self._call = layer, differentiable(layer)
        params = layer.init(rng if isinstance(rng, Philox) else Philox(rng))
        for path, array in tree.flatten(params):
            holder = self
            for name in path[:-1]:
                if not hasattr(holder, str(name)):
                    holder.add_module(str(name), torch.nn.Module())
                holder = getattr(holder, str(name))
            holder.register_parameter(str(path[-1]), torch.nn.Parameter(to_tensor(np.array(array))))
        self._names = _named(params)

    @classmethod
    def from_torch(cls, module: torch.nn.MultiheadAttention) -> Module:
        """Multi-head attention with the parameters of PyTorch's, copied; its inputs are (B, T, E)."""
        if module.bias_k is not None or module.add_zero_attn or module.in_proj_weight is None:
            raise ValueError("A module with bias_k, add_zero_attn, kdim or vdim has no counterpart here.")
        bias = module.in_proj_bias is not None
        new = cls(attnarray.layers.MultiHeadAttention(module.embed_dim, module.num_heads, bias=bias))
        state = {f"out.{name}": x for name, x in module.out_proj.state_dict().items()}
        for kind in ("weight", "bias") if bias else ("weight",):
            thirds = getattr(module, f"in_proj_{kind}").detach().chunk(3)
            state |= {f"{name}.{kind}": x for name, x in zip(("query", "key", "value"), thirds, strict=True)}
        new.load_state_dict(state)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_call"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._call = differentiable(self.layer)

    def params(self) -> Any:
        """The parameters as the tree that the layer takes."""
        return tree.map(self.get_parameter, self._names)

    def forward(self, *args: Any, **options: Any) -> Any:
        return self._call(self.params(), *args, **options)


def _named(node: Any, prefix: str = "") -> Any:
    """A tree of parameters with the names that a module gives them in place of arrays."""
    if isinstance(node, dict):
        return {name: _named(child, f"{prefix}{name}.") for name, child in node.items()}
    if isinstance(node, list):
        return [_named(child, f"{prefix}{n}.") for n, child in enumerate(node)]
    return None if node is None else prefix[:-1]

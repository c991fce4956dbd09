"""GPT-2 in PyTorch eager, optimized: fused projections, PyTorch's attention, a preallocated cache."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from attnarray.models import GPT

Cache = list[tuple[torch.Tensor, torch.Tensor]]


class Block(torch.nn.Module):
    """One block with the weights of ours."""

    def __init__(self, params: dict[str, Any], num_heads: int) -> None:
        super().__init__()
        attention, feed_forward = params["attention"], params["feed_forward"]
        self.num_heads = num_heads
        self.attention_norm, self.feed_forward_norm = (
            _norm(params[name]) for name in ("attention_norm", "feed_forward_norm")
        )
        self.inputs = _linear(attention["query"], attention["key"], attention["value"])
        self.out = _linear(attention["out"])
        self.up, self.down = _linear(feed_forward["hidden"]), _linear(feed_forward["out"])

    def forward(self, x: torch.Tensor, cache: Any, start: int) -> torch.Tensor:
        B, T, E = x.shape
        inputs = self.inputs(self.attention_norm(x)).view(B, T, 3, self.num_heads, E // self.num_heads)
        q, k, v = inputs.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        if cache is not None:
            for room, new in zip(cache, (k, v), strict=True):
                room[:, :, start : start + T] = new
            k, v = (room[:, :, : start + T] for room in cache)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        x = x + self.out(out.transpose(1, 2).reshape(B, T, E))
        return x + self.down(functional.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh"))


class TorchGPT(torch.nn.Module):
    """The model `GPT` with learned positions and tied embeddings, with copies of its parameters."""

    def __init__(self, model: GPT, params: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.token, self.position = (_parameter(params[name]["weight"]) for name in ("token", "position"))
        self.blocks = torch.nn.ModuleList(Block(block, model.num_heads) for block in params["blocks"])
        self.norm = _norm(params["norm"])

    def forward(
        self, tokens: torch.Tensor, cache: Cache | None = None, start: int = 0, last: bool = False
    ) -> torch.Tensor:
        """Logits (B, T, V), or (B, 1, V) of the last token."""
        x = functional.embedding(tokens, self.token) + self.position[start : start + tokens.shape[1]]
        for n, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[n], start)
        return functional.linear(self.norm(x[:, -1:] if last else x), self.token)

    def cache(self, batch: int, max_seq_len: int) -> Cache:
        """A preallocated cache of keys and values."""
        shape = (batch, self.model.num_heads, max_seq_len, self.model.dim // self.model.num_heads)
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in self.blocks]


def _parameter(array: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.from_numpy(array).clone())


def _linear(*parts: dict[str, Any]) -> torch.nn.Linear:
    """One linear layer with the concatenated weights of several."""
    weight, bias = (torch.cat([torch.from_numpy(part[name]) for part in parts]) for name in ("weight", "bias"))
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())
    return linear


def _norm(params: dict[str, Any]) -> torch.nn.LayerNorm:
    norm = torch.nn.LayerNorm(len(params["weight"]), eps=1e-5)
    norm.weight, norm.bias = _parameter(params["weight"]), _parameter(params["bias"])
    return norm

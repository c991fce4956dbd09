"""Sparse and hard attention in PyTorch by sorting, the usual implementation, with gradients by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from attnarray import HardResult


def sparsemax(x: Any) -> Any:
    """Martins and Astudillo, algorithm 1."""
    tau = _threshold(x, lambda total, _, k: (total - 1) / k)
    return (x - tau).clamp(min=0)


def entmax(x: Any) -> Any:
    """Peters, Niculae and Martins, algorithm 2: alpha = 1.5."""

    def support_threshold(total: Any, squares: Any, k: Any) -> Any:
        mean = total / k
        return mean - ((1 - squares + total * mean) / k).clamp(min=1e-30).sqrt()  # at 0 it would have no gradient

    x = x / 2
    return (x - _threshold(x, support_threshold)).clamp(min=0) ** 2


def _threshold(x: Any, support_threshold: Callable[[Any, Any, Any], Any]) -> Any:
    """tau from the sum, the sum of squares and the size of the support, as a part of autograd's graph."""
    import torch

    shift = x.detach().amax(-1, keepdim=True)
    ordered = (x - shift).sort(-1, descending=True).values
    k = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    taus = support_threshold(ordered.cumsum(-1), (ordered**2).cumsum(-1), k)
    size = (ordered.detach() > taus.detach()).sum(-1, keepdim=True)
    return taus.gather(-1, size - 1) + shift


def sparsemax_attention(query: Any, key: Any, value: Any) -> Any:
    return sparsemax(query @ key.mT / math.sqrt(query.shape[-1])) @ value


def entmax_attention(query: Any, key: Any, value: Any) -> Any:
    return entmax(query @ key.mT / math.sqrt(query.shape[-1])) @ value


def top_k_attention(query: Any, key: Any, value: Any, estimator: str, k: int) -> HardResult:
    import torch

    scores = query @ key.mT / math.sqrt(query.shape[-1])  # (B, H, T, S)
    logs = scores.log_softmax(-1)
    chosen, indices = (part[..., :k] for part in scores.sort(-1, descending=True))
    weights = torch.zeros_like(scores).scatter(-1, indices, chosen.softmax(-1))
    log_prob = logs.gather(-1, indices).logsumexp(-1)
    return HardResult(weights @ value, log_prob, -(logs.exp() * logs).sum(-1))


SPARSE: dict[str, Callable[..., Any]] = {
    "sparsemax": sparsemax,
    "entmax": entmax,
    "sparsemax_attention": sparsemax_attention,
    "entmax_attention": entmax_attention,
    "hard_attention": top_k_attention,
}

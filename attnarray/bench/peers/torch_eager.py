"""Attention in PyTorch written out, operation by operation, with gradients by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from attnarray.bench.peers.peer import Call, Peer, Problem, Unsupported
from attnarray.bench.peers.torch_engine import INSTALL, call_of, tensor_of


def prepare(problem: Problem) -> Call:
    """All scores at once, as in the paper; the mask is built beforehand."""
    if not problem.is_attention:
        raise Unsupported("written out for attention only")
    return call_of(problem, _attention(problem))


def _attention(problem: Problem) -> Callable[..., Any]:
    import torch

    options, groups = problem.case.options, problem.groups
    mask = tensor_of(problem.mask, problem.backend)
    scale = options.get("scale") or 1 / math.sqrt(problem.arrays["query"].shape[-1])
    softcap, p = options.get("softcap"), options.get("dropout_p", 0.0)

    def attention(query: Any, key: Any, value: Any, bias: Any = None, sinks: Any = None, **_: Any) -> Any:
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.mT * scale  # (B, H, T, S)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        if sinks is not None:
            scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)], -1)  # (B, H, T, S + 1)
        weights = torch.softmax(scores, -1)[..., : key.shape[-2]]
        return torch.dropout(weights, p, True) @ value if p else weights @ value

    return attention


PEER = Peer("torch-eager", "PyTorch, operation by operation", prepare, ("torch",), INSTALL, backends=("numpy", "cupy"))

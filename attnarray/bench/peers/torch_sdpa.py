"""PyTorch's fused functions: scaled_dot_product_attention, layer_norm and their like."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from attnarray.bench.peers.peer import Call, Peer, Problem, Unsupported
from attnarray.bench.peers.torch_engine import INSTALL, call_of, tensor_of


def prepare(problem: Problem) -> Call:
    """What a user of PyTorch calls; masks for what the function has no option for are built beforehand."""
    if problem.is_attention:
        return call_of(problem, _attention(problem))
    return call_of(problem, _primitive(problem))


def _attention(problem: Problem) -> Callable[..., Any]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    problem.refuse("scaled_dot_product_attention", "softcap", "sinks")
    options = problem.case.options
    causal = problem.plainly_causal and "bias" not in problem.arrays  # is_causal and a mask exclude each other
    mask = None if causal else tensor_of(problem.mask, problem.backend)
    call = functools.partial(
        scaled_dot_product_attention,
        is_causal=causal,
        dropout_p=options.get("dropout_p", 0.0),
        scale=options.get("scale"),
        enable_gqa=problem.groups > 1,
    )

    def attention(query: Any, key: Any, value: Any, bias: Any = None, **_: Any) -> Any:
        if bias is None:
            return call(query, key, value, attn_mask=mask)
        return call(query, key, value, attn_mask=bias if mask is None else torch.where(mask, bias, -torch.inf))

    return attention


def _primitive(problem: Problem) -> Callable[..., Any]:
    from torch.nn import functional as f

    options = problem.case.options
    axis = options.get("axis", -1)
    known: dict[str, Callable[..., Any]] = {
        "softmax": lambda x: f.softmax(x, axis),
        "log_softmax": lambda x: f.log_softmax(x, axis),
        "linear": lambda x, weight, bias=None: f.linear(x, weight, bias),
        "layer_norm": lambda x, weight=None, bias=None: f.layer_norm(
            x, x.shape[-1:], weight, bias, _eps(options, 1e-5)
        ),
        "rms_norm": lambda x, weight=None: f.rms_norm(x, x.shape[-1:], weight, _eps(options, 1e-6)),
        "relu": lambda x: f.relu(x),
        "gelu": lambda x: f.gelu(x, approximate=options.get("approximate", "none")),
        "silu": lambda x: f.silu(x),
        "tanh": lambda x: x.tanh(),
        "sigmoid": lambda x: x.sigmoid(),
        "embedding": lambda indices, weight: f.embedding(indices, weight),
        "dropout": lambda x: f.dropout(x, options.get("p", 0.0)),
        "cross_entropy": lambda logits, targets: f.cross_entropy(logits, targets, **options),
    }
    if problem.case.function not in known or "mask" in problem.arrays:
        raise Unsupported(f"no call of PyTorch is written down for {problem.case.function}")
    return known[problem.case.function]


def _eps(options: Any, default: float) -> float:
    return float(options.get("eps", default))


PEER = Peer("torch", "PyTorch's fused functions", prepare, ("torch",), INSTALL, backends=("numpy", "cupy"))

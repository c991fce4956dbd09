"""PyTorch's fused functions: scaled_dot_product_attention, layer_norm and others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from attnarray import GRUResult, LSTMResult, RNNResult
from attnarray.bench.peers.peer import Call, Peer, Problem, Unsupported
from attnarray.bench.peers.torch_engine import INSTALL, make_call, to_tensor


def prepare(problem: Problem) -> Call:
    """The function that a user of PyTorch calls; masks without an option of it are built beforehand."""
    if problem.is_attention:
        return make_call(problem, _attention(problem))
    return make_call(problem, _primitive(problem))


def _attention(problem: Problem) -> Callable[..., Any]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    problem.refuse("scaled_dot_product_attention", "softcap", "sinks")
    options = problem.case.options
    causal = problem.plainly_causal and "bias" not in problem.arrays  # is_causal and a mask exclude each other
    mask = None if causal else to_tensor(problem.mask, problem.backend)
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
        "multi_head_attention": _multi_head,
        "multiplicative_attention": _multiplicative,
        "scaled_attention": lambda query, key, value, gate: (
            gate[..., None] * f.scaled_dot_product_attention(query, key, value)
        ),
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
        "conv1d": lambda x, weight, bias=None: f.conv1d(x.mT, weight, bias, padding=weight.shape[-1] // 2).mT,
        "conv2d": lambda x, weight, bias=None: f.conv2d(
            x.permute(0, 3, 1, 2), weight, bias, stride=options.get("stride", 1)
        ).permute(0, 2, 3, 1),
        "max_over_time": lambda x: x.amax(-2),
        "rnn": functools.partial(_recurrent, "rnn_tanh", RNNResult),
        "lstm": functools.partial(_recurrent, "lstm", LSTMResult),
        "gru": functools.partial(_recurrent, "gru", GRUResult),
    }
    if problem.case.function not in known or "mask" in problem.arrays or options.get("score") == "concat":
        raise Unsupported(f"no call of PyTorch is written down for {problem.case.function}")
    function = known[problem.case.function]
    return functools.partial(function, options["num_heads"]) if "num_heads" in options else function


def _multi_head(heads: int, query: Any, params: Any) -> Any:
    """torch.nn.MultiheadAttention without its weights."""
    from torch.nn import functional as f

    q, k, v = (f.linear(query, params[n]["weight"]).unflatten(-1, (heads, -1)) for n in ("query", "key", "value"))
    out = f.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))  # (B, H, T, D)
    return f.linear(out.transpose(1, 2).flatten(-2), params["out"]["weight"])


def _multiplicative(query: Any, key: Any, value: Any, weight: Any) -> Any:
    from torch.nn import functional as f

    return f.scaled_dot_product_attention(query @ weight, key, value, scale=1.0)


def _recurrent(name: str, results: Any, x: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any) -> Any:
    """One layer in one direction of torch.lstm and others, which torch.nn.LSTM calls; both biases are required."""
    import torch

    zeros = x.new_zeros(1, x.shape[0], weight_hh.shape[1])  # one layer, one direction
    weights = [weight_ih, weight_hh, bias_ih, torch.zeros_like(bias_ih)]
    first = (zeros, zeros) if name == "lstm" else zeros
    out, *states = getattr(torch, name)(x, first, weights, True, 1, 0.0, False, False, True)
    return results(out, *(state[0] for state in states))


def _eps(options: Any, default: float) -> float:
    return float(options.get("eps", default))


PEER = Peer("torch", "PyTorch's fused functions", prepare, ("torch",), INSTALL, backends=("numpy", "cupy"))

"""Attention in PyTorch, operation by operation, with gradients by autograd."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from attnarray import LocationResult
from attnarray.bench.peers.peer import Call, Peer, Problem, Unsupported
from attnarray.bench.peers.torch_engine import INSTALL, make_call, to_tensor
from attnarray.bench.peers.torch_images import IMAGES
from attnarray.bench.peers.torch_sparse import SPARSE


def prepare(problem: Problem) -> Call:
    """All scores at once, as in the paper; the mask is built beforehand."""
    if problem.is_attention:
        return make_call(problem, _attention(problem))
    function, options = problem.case.function, problem.case.options
    if function not in MECHANISMS or not OPTIONS.issuperset(options):
        raise Unsupported(f"not written out for {function} with these options")
    return make_call(problem, functools.partial(MECHANISMS[function], **options))


def _attention(problem: Problem) -> Callable[..., Any]:
    import torch

    options, groups = problem.case.options, problem.groups
    mask = to_tensor(problem.mask, problem.backend)
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


def _additive(query: Any, key: Any, value: Any, score_vector: Any) -> Any:
    scores = (query[..., :, None, :] + key[..., None, :, :]).tanh() @ score_vector  # (B, T, S)
    return scores.softmax(-1) @ value


def _multi_head(query: Any, params: Any, num_heads: int) -> Any:
    q, k, v = (
        (query @ params[name]["weight"].T).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for name in ("query", "key", "value")
    )
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)  # (B, H, T, T)
    return (weights @ v).transpose(1, 2).flatten(-2) @ params["out"]["weight"].T


def _multiplicative(query: Any, key: Any, value: Any, weight: Any, score_vector: Any = None, score: str = "") -> Any:
    if score == "concat":
        query_weight, key_weight = weight.split(query.shape[-1], -1)
        return _additive(query @ query_weight.T, key @ key_weight.T, value, score_vector)
    return (query @ weight @ key.mT).softmax(-1) @ value


def _scaled(query: Any, key: Any, value: Any, gate: Any) -> Any:
    return gate[..., None] * ((query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1) @ value)


def _attentional_hidden_state(
    context: Any, hidden: Any, context_weight: Any, hidden_weight: Any, activation: str
) -> Any:
    return (context @ context_weight.T + hidden @ hidden_weight.T).tanh()


def _pairwise(x: Any, input_weight: Any, score_vector: Any) -> Any:
    first, second = input_weight.split(x.shape[-1], -1)
    return _additive(x @ first.T, x @ second.T, x, score_vector)


def _convolutional(x: Any, query_weight: Any, key_weight: Any, score_vector: Any) -> Any:
    import torch.nn.functional as f

    query, key = (f.conv1d(x.mT, weight, padding=weight.shape[-1] // 2).mT for weight in (query_weight, key_weight))
    return _additive(query, key, x, score_vector)


def _location(
    query: Any, key: Any, value: Any, score_vector: Any, location_filter: Any, location_weight: Any
) -> LocationResult:
    import torch

    filters, weights = location_filter[:, None], [torch.zeros_like(key[..., 0])]
    for step in query.unbind(1):
        features = torch.nn.functional.conv1d(weights[-1][:, None], filters, padding=filters.shape[-1] // 2).mT
        scores = (step[:, None] + key + features @ location_weight.T).tanh() @ score_vector  # (B, S)
        weights.append(scores.softmax(-1))
    every = torch.stack(weights[1:], 1)
    return LocationResult(every @ value, every)


def _recurrent(
    query: Any, key: Any, weight_ih: Any, weight_hh: Any, output_weight: Any, score_vector: Any, gate_bias: Any
) -> Any:
    import torch

    (B, T, _), S = query.shape, key.shape[1]
    pairs = torch.cat([query[:, :, None].expand(-1, -1, S, -1), key[:, None].expand(-1, T, -1, -1)], -1)
    start = query.new_zeros(1, B * T, weight_hh.shape[1])
    given = [weight_ih, weight_hh, gate_bias, torch.zeros_like(gate_bias)]
    states = torch.lstm(pairs.flatten(0, 1), (start, start), given, True, 1, 0.0, True, False, True)[0]  # (B T, S, H)
    scores = ((states @ output_weight.T).tanh() @ score_vector).view(B, T, S)
    return scores.softmax(-1) @ key


def _segment_softmax(x: Any, segments: Any, count: int) -> Any:
    import torch

    indices = segments[:, None].expand_as(x)
    largest = x.new_full((count, x.shape[1]), -math.inf).scatter_reduce(0, indices, x.detach(), "amax")
    exps = torch.exp(x - largest[segments])
    return exps / torch.zeros_like(largest).scatter_add(0, indices, exps)[segments]


def _graph(query: Any, key: Any, value: Any, score_vector: Any, edges: Any, score: str) -> Any:
    import torch

    leaky = torch.nn.functional.leaky_relu
    source, target = edges
    if score == "gat":
        query_weight, key_weight = score_vector.split(query.shape[-1], -1)
        scores = leaky((query * query_weight).sum(-1)[target] + (key * key_weight).sum(-1)[source], 0.2)
    else:
        scores = (leaky(query[target] + key[source], 0.2) * score_vector).sum(-1)  # (E, H)
    weights = _segment_softmax(scores, target, query.shape[0])
    out = value.new_zeros(query.shape[0], *value.shape[1:])
    return out.index_add(0, target, weights[..., None] * value[source])


def _relative(
    query: Any, key: Any, value: Any, position_key: Any, content_bias: Any, position_bias: Any, is_causal: bool,
    q_offset: int,
) -> Any:  # fmt: skip
    import torch

    (T, D), S = query.shape[-2:], key.shape[-2]
    positional = (query + position_bias[:, None]) @ position_key.mT  # (B, H, T, S), each row to be shifted
    flat = torch.nn.functional.pad(positional, (1, 0)).flatten(-2)[..., T:]
    scores = ((query + content_bias[:, None]) @ key.mT + flat.unflatten(-1, (T, S))) / math.sqrt(D)
    mask = torch.ones(T, S, dtype=torch.bool, device=query.device).triu(1 + q_offset)
    return scores.masked_fill(mask, -math.inf).softmax(-1) @ value


def _rotary(x: Any, interleaved: bool = False) -> Any:
    import torch

    cos, sin = _rotations(x.shape[-2], x.shape[-1], interleaved, x.dtype, x.device)
    if interleaved:
        swapped = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    else:
        first, second = x.chunk(2, -1)
        swapped = torch.cat([-second, first], -1)
    return x * cos + swapped * sin


@functools.lru_cache(maxsize=8)
def _rotations(count: int, dims: int, interleaved: bool, dtype: Any, device: Any) -> Any:
    import torch

    frequencies = 1e4 ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    angles = torch.arange(count)[:, None] * frequencies
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles, angles], -1)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def _local(
    query: Any, key: Any, value: Any, position_weight: Any, position_vector: Any, window: int, alignment: str
) -> Any:
    import torch

    keys = torch.arange(key.shape[-2], device=key.device)
    centers = len(keys) * torch.sigmoid((query @ position_weight.T).tanh() @ position_vector)
    distances = keys - centers[..., None]  # (B, T, S)
    weights = (query @ key.mT).masked_fill(distances.abs() > window, -math.inf).softmax(-1)
    return (weights * torch.exp(-((distances / window) ** 2) * 2)) @ value


# Options of these functions.
OPTIONS = {
    "num_heads", "score", "activation", "count", "is_causal", "q_offset", "interleaved", "alignment", "window",
    "estimator", "k", "kernel_size", "window_size", "shift", "spatial_shapes",
}  # fmt: skip
MECHANISMS: dict[str, Callable[..., Any]] = {
    **SPARSE,
    **IMAGES,
    "additive_attention": _additive,
    "multi_head_attention": _multi_head,
    "multiplicative_attention": _multiplicative,
    "scaled_attention": _scaled,
    "attentional_hidden_state": _attentional_hidden_state,
    "pairwise_attention": _pairwise,
    "convolutional_attention": _convolutional,
    "location_attention": _location,
    "recurrent_attention": _recurrent,
    "local_attention": _local,
    "relative_attention": _relative,
    "rotary": _rotary,
    "graph_attention": _graph,
    "segment_softmax": _segment_softmax,
}

PEER = Peer("torch-eager", "PyTorch, operation by operation", prepare, ("torch",), INSTALL, backends=("numpy", "cupy"))

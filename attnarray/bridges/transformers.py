"""Models of Hugging Face's transformers with the attention of this package: `attn_implementation="attnarray"`.

Importing this module registers it. Inference and training work as with "sdpa"; `record_weights` gives the weights of
chosen rows of all layers, which other fast implementations do not have.

Examples
--------
>>> import torch, transformers
>>> from attnarray.bridges import transformers as bridge
>>> config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=50, attn_implementation="attnarray")
>>> model = transformers.GPT2Model(config).eval()
>>> with bridge.record_weights(rows=[-1]) as weights:
...     out = model(torch.tensor([[1, 2, 3]]))
>>> len(weights), weights[0].shape
(2, torch.Size([1, 2, 1, 3]))
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import attnarray
from attnarray.bridges.torch import differentiable, to_array, to_tensor

try:
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
except ImportError as error:
    raise ImportError(
        "attnarray.bridges.transformers needs transformers 4.53 or newer: pip install --upgrade transformers"
    ) from error

NAME = "attnarray"


class _Attention:
    """Attention of (B, T, H, D) whose results are contiguous.

    PyTorch would copy them in parallel, in threads that go on spinning for a while: in the time of the next attention.
    """

    def __call__(self, query: Any, key: Any, value: Any, **options: Any) -> Any:
        return self.fwd(query, key, value, **options)[0]

    def fwd(self, query: Any, key: Any, value: Any, **options: Any) -> tuple[Any, Any]:
        """The output (B, T, H, D), and the context."""
        out, ctx = attnarray.scaled_dot_product_attention_fwd(query, key, value, **options, layout="BTHD")
        return _contiguous(out), ctx

    def bwd(self, dout: Any, ctx: Any) -> Any:
        """The gradients, by name."""
        grads = attnarray.scaled_dot_product_attention_bwd(dout, ctx)
        return grads._replace(**{name: _contiguous(getattr(grads, name)) for name in ("query", "key", "value")})


def _contiguous(x: Any) -> Any:
    """x (B, T, H, D) in this order in memory."""
    xp, (B, T, H, D) = attnarray.namespace_of(x), x.shape
    return xp.reshape(xp.reshape(x, (B, T, H * D)), (B, T, H, D))


_attention = differentiable(_Attention())


class Recording(NamedTuple):
    """Which rows are wanted, and the weights found so far, one tensor for each layer."""

    rows: Sequence[int]
    weights: list[Any]


_RECORDING: ContextVar[Recording | None] = ContextVar("attnarray_transformers", default=None)


def attention_forward(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None,
    dropout: float = 0.0, is_causal: bool | None = None, position_bias: Any = None, softcap: float | None = None,
    s_aux: Any = None, **unused: Any,
) -> tuple[Any, None]:  # fmt: skip
    """The attention of a layer of transformers: (B, H, T, D) -> (B, T, H, D), and None in place of all weights.

    Sliding windows are in the mask that transformers makes; `s_aux` are sinks.
    """
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    options: dict[str, Any] = {
        "attn_mask": attention_mask,
        "is_causal": bool(is_causal) and attention_mask is None and query.shape[2] > 1,
        "scale": scaling,
        "bias": position_bias,
        "softcap": softcap,
        "sinks": s_aux,
    }
    if attention_mask is not None and attention_mask.dtype is not torch.bool:
        options["attn_mask"] = attention_mask.to(query.dtype)
    if dropout:
        options |= {"dropout_p": dropout, "rng": int(torch.randint(2**62, ()))}
    recording = _RECORDING.get()
    if recording is not None:
        recording.weights.append(_weights(query, key, value, options, recording.rows))
    return _attention(*(x.transpose(1, 2) for x in (query, key, value)), **options), None


def _weights(query: Any, key: Any, value: Any, options: dict[str, Any], rows: Sequence[int]) -> Any:
    """The weights of some rows, without dropout."""
    arrays = {name: to_array(x, name) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    for name in ("dropout_p", "rng"):
        arrays.pop(name, None)
    _, ctx = attnarray.scaled_dot_product_attention_fwd(*map(to_array, (query, key, value)), **arrays)
    indices = range(query.shape[2])
    found = [attnarray.attention_weights(ctx, slice(indices[row], indices[row] + 1)) for row in rows]
    return torch.cat([to_tensor(weights) for weights in found], dim=2)


@contextlib.contextmanager
def record_weights(rows: Sequence[int]) -> Iterator[list[Any]]:
    """Within the block, models collect the weights (B, H, len(rows), S) of these queries, a tensor for each layer.

    Negative rows count from the last query. Each layer computes its attention once more; gradients do not pass through
    the weights.
    """
    recording = Recording(rows, [])
    token = _RECORDING.set(recording)
    try:
        yield recording.weights
    finally:
        _RECORDING.reset(token)


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)

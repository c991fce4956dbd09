"""The attention inside the context of a model: each context by the path of its layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attnarray import checks
from attnarray.attention.weights import has_weights
from attnarray.layers.block import Recomputed

SKIPPED = {"body", "branch"}  # fields of contexts that are no names of parameters


def attention_contexts(ctx: Any) -> dict[str, Any]:
    """Return the context of each attention in the context of a model, by the path of the layer.

    Parameters
    ----------
    ctx : context
        From the `fwd` of a model or layer, or from that of an attention function alone.

    Returns
    -------
    dict
        Path -> context, in the order of computation. Paths are those of the parameters, such as "blocks.0.attention".
        `attention_weights` takes each context, and so do the functions of `interpret`.

    Raises
    ------
    TypeError
        If there is no attention with weights in it, such as for linear attention.
    ValueError
        If the model was made with ``recompute=True``: its contexts hold arguments only.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> logits, ctx = model.fwd(model.init(aa.Philox(0)), np.array([[3, 1, 4, 1, 5]]))
    >>> list(aa.interpret.attention_contexts(ctx))
    ['blocks.0.attention', 'blocks.1.attention']
    """
    found = {_name(path): each for path, each in _walk((), ctx)}
    if not found:
        raise TypeError(
            f"`ctx` is {checks.shown(ctx)}, which holds no attention with weights; expected the context that the "
            "forward pass of a model, layer or function of attention gave, such as model.fwd(...)[1]."
        )
    return found


def _walk(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = value
    while not has_weights(inner) and hasattr(inner, "attention"):  # of a layer that is built on a function
        inner = inner.attention
    if has_weights(inner):
        yield path, inner
    elif isinstance(value, Recomputed):
        raise ValueError(
            f"{_name(path) or '`ctx`'} holds arguments only, as the model has recompute=True. Make the model with "
            "recompute=False."
        )
    elif isinstance(value, tuple | list):
        names = getattr(value, "_fields", range(len(value)))
        for name, each in zip(names, value, strict=True):
            yield from _walk((*path, str(name)), each)


def _name(path: tuple[str, ...]) -> str:
    """The path without fields that parameters lack."""
    return ".".join(part for part in path if part not in SKIPPED)

"""Multi-head attention of Dask arrays: projections block by block around `scaled_dot_product_attention`."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import numpy as np

from attnarray import checks
from attnarray.attention.dot_product.multi_head import PARTS, HeadOptions, MultiHeadGrads, Params, checked_heads
from attnarray.attention.options import known_options
from attnarray.backend import accumulator_dtype
from attnarray.distributed.dask import blocks, projections
from attnarray.distributed.dask.graph import bound, indices, make_layer, segments, task_name, tree, unfilled
from attnarray.distributed.dask.projections import Heads
from attnarray.distributed.dask.scaled_dot_product import (
    DaskAttentionContext,
    scaled_dot_product_attention_bwd,
    scaled_dot_product_attention_fwd,
)
from attnarray.masks import Mask
from attnarray.ops.rotary import Rotary


class DaskMultiHeadContext(NamedTuple):
    """What the backward needs: the inputs, the parameters as Dask arrays, and the context of the attention."""

    inputs: dict[str, Any]  # query, key, value: (B, T, E)
    params: dict[str, dict[str, Any]]
    heads: dict[str, Heads]
    attention: DaskAttentionContext
    has_key: bool
    has_value: bool


def multi_head_attention(
    query: Any,
    key: Any = None,
    value: Any = None,
    params: Params | None = None,
    attn_mask: Any | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    rotary: Rotary | None = None,
    **options: Unpack[HeadOptions],
) -> Any:
    r"""Multi-head attention of Dask arrays, as `attnarray.multi_head_attention`.

    Parameters
    ----------
    query, key, value : (B, T, Eq), (B, S, Ek), (B, S, Ev) dask.array.Array
        In chunks of batch and positions; key and value may be left out.
    params : dict
        NumPy or CuPy arrays, as there.
    attn_mask, dropout_p, is_causal, num_heads, num_kv_heads, rotary, **options
        As there; arrays over the scores as in `scaled_dot_product_attention`.

    Returns
    -------
    (B, T, E) dask.array.Array

    Raises
    ------
    TypeError, ValueError
        As `attnarray.multi_head_attention` and `scaled_dot_product_attention`.

    Examples
    --------
    >>> import attnarray as aa
    >>> import dask.array as da
    >>> from attnarray.distributed import dask as dask_attention
    >>> params = aa.layers.MultiHeadAttention(dim=16, num_heads=4).init(aa.Philox(0))
    >>> x = da.ones((2, 50, 16), chunks=(1, 20, 16), dtype="float32")
    >>> dask_attention.multi_head_attention(x, params=params, num_heads=4, is_causal=True).compute().shape
    (2, 50, 16)
    """
    return multi_head_attention_fwd(
        query, key, value, params, attn_mask, dropout_p, is_causal, num_heads=num_heads, num_kv_heads=num_kv_heads,
        rotary=rotary, **options,
    )[0]  # fmt: skip


def multi_head_attention_fwd(
    query: Any,
    key: Any = None,
    value: Any = None,
    params: Params | None = None,
    attn_mask: Any | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    rotary: Rotary | None = None,
    **options: Unpack[HeadOptions],
) -> tuple[Any, DaskMultiHeadContext]:
    """`multi_head_attention` and the context for its backward."""
    import dask.array as da

    known_options(options, HeadOptions)
    has_key, has_value = key is not None, value is not None
    key = query if key is None else key
    inputs = {"query": query, "key": key, "value": key if value is None else value}
    for name, x in inputs.items():
        _check_input(name, x)
    whole = [unfilled(x) for x in inputs.values()]
    _, num_kv_heads, params = checked_heads(whole[0], whole[1], whole[2], params, num_heads, num_kv_heads, None, {})
    if set(params) != set(PARTS):
        unknown = ", ".join(repr(part) for part in params if part not in PARTS)
        raise ValueError(f"`params` has {unknown}, which Dask arrays do not support: norms, cosines and gates.")
    if rotary is not None and not isinstance(rotary, Rotary):
        raise TypeError(f"`rotary` is {checks.shown(rotary)}, expected attnarray.Rotary(...).")
    if rotary is not None and (rotary.depends_on_length or rotary.sections is not None):
        raise ValueError("`rotary` has sections or a scaling by length, which Dask arrays do not support.")
    arrays = {part: {name: da.from_array(x, chunks=-1) for name, x in params[part].items()} for part in PARTS}
    heads = {
        "query": Heads(num_heads, rotary, options.get("q_offset", 0)),
        "key": Heads(num_kv_heads, rotary, 0),
        "value": Heads(num_kv_heads, None, 0),
    }
    q, k, v = (_projected(inputs[name], arrays[name], heads[name]) for name in inputs)
    out, attention = scaled_dot_product_attention_fwd(q, k, v, attn_mask, dropout_p, is_causal, **options)
    ctx = DaskMultiHeadContext(inputs, arrays, heads, attention, has_key, has_value)
    return _joined(out, arrays["out"], query), ctx


def multi_head_attention_bwd(dout: Any, ctx: DaskMultiHeadContext, dlse: Any = None) -> MultiHeadGrads[Any]:
    r"""The gradients of multi-head attention as Dask arrays.

    Those of the projections of each block of positions,

    .. math:: dW_O = \sum_n \sum_{i \in n} dy_i\, [o^1_i; \dots; o^H_i]^T, \qquad
        dW_Q = \sum_n \sum_{i \in n} dq_i x_i^T, \qquad dx_i = W_Q^T dq_i

    and so on for keys and values, summed along trees, around `scaled_dot_product_attention_bwd`.

    Parameters
    ----------
    dout : (B, T, E) dask.array.Array
    ctx : DaskMultiHeadContext
    dlse : (B, H, T) dask.array.Array, optional
        A cotangent of the lse.

    Returns
    -------
    MultiHeadGrads
        query, key, value, params (a tree like `params`), bias, sinks; None for what was not given.
    """
    import dask.array as da

    checks.context("ctx", ctx, DaskMultiHeadContext)
    query, out = ctx.inputs["query"], ctx.attention.out
    if not isinstance(dout, da.Array):
        raise TypeError(f"`dout` is {checks.shown(dout)}, expected a Dask array.")
    width = ctx.params["out"]["weight"].shape[0]
    checks.shape("dout", dout, (*query.shape[:2], width), "the shape of the output")
    checks.floating(dout=dout, query=query)
    dout = dout.rechunk((*query.chunks[:2], (width,)))
    dheads, dparams = _joined_backward(dout, out, ctx.params["out"], ctx.heads["query"])
    grads = scaled_dot_product_attention_bwd(dheads, ctx.attention, dlse)
    found, params = {}, {}
    for name, dx in (("query", grads.query), ("key", grads.key), ("value", grads.value)):
        found[name], params[name] = _projected_backward(dx, ctx.inputs[name], ctx.params[name], ctx.heads[name])
    params["out"] = dparams
    dquery, dkey, dvalue = found["query"], found["key"], found["value"]
    dkey = dkey if ctx.has_value else dkey + dvalue
    dquery = dquery if ctx.has_key else dquery + dkey
    dkey, dvalue = dkey if ctx.has_key else None, dvalue if ctx.has_value else None
    return MultiHeadGrads(dquery, dkey, dvalue, params, grads.bias, grads.sinks)


def _check_input(name: str, x: Any) -> None:
    import dask.array as da

    if not isinstance(x, da.Array):
        hint = "Make one with dask.array.from_array(x, chunks=...)."
        raise TypeError(f"`{name}` is {checks.shown(x)}, expected a Dask array (B, T, E). {hint}")
    if x.ndim != 3:
        raise ValueError(f"`{name}` has shape {x.shape}, expected three axes: (B, T, E).")
    if x.numblocks[2] > 1:
        raise ValueError(
            f"`{name}` is divided along its last axis into {x.chunks[2]}, expected one chunk: "
            f"{name}.rechunk({{2: -1}})."
        )


def _parameters(arrays: dict[str, Any]) -> tuple[Any, Any]:
    """The keys of a weight and of its bias."""
    weight, bias = arrays["weight"], arrays.get("bias")
    return (weight.name, 0, 0), None if bias is None else (bias.name, 0)


def _projected(x: Any, arrays: dict[str, Any], heads: Heads) -> Any:
    """Queries, keys or values (B, H, T, D) of all heads."""
    name, rows = task_name("attention-heads", x.name, *_names(arrays), repr(heads)), segments(x.chunks[1])
    batch = segments(x.chunks[0])
    tasks = {
        (name, b, 0, t, 0): (
            bound(projections.heads_block, heads=heads.at(batch[b], rows[t].start)), (x.name, b, t, 0),
            *_parameters(arrays),
        )
        for b, t in indices(*x.numblocks[:2])
    }  # fmt: skip
    width = arrays["weight"].shape[0] // heads.num_heads
    chunks = (x.chunks[0], (heads.num_heads,), x.chunks[1], (width,))
    return make_layer(name, tasks, [x, *arrays.values()]).whole(chunks, accumulator_dtype(np, x.dtype), x)


def _joined(out: Any, arrays: dict[str, Any], like: Any) -> Any:
    """The output (B, T, E) from that of all heads."""
    name = task_name("attention-output", out.name, *_names(arrays))
    tasks = {
        (name, b, t, 0): (projections.output_block, (out.name, b, 0, t, 0), *_parameters(arrays))
        for b, t in indices(*like.numblocks[:2])
    }
    chunks = (*like.chunks[:2], (arrays["weight"].shape[0],))
    return make_layer(name, tasks, [out, *arrays.values()]).whole(chunks, like.dtype, like)


def _projected_backward(dx: Any, x: Any, arrays: dict[str, Any], heads: Heads) -> tuple[Any, dict[str, Any]]:
    """The gradients of `_projected`: of x and of the parameters."""
    name, rows = task_name("attention-heads-gradients", dx.name, x.name, *_names(arrays)), segments(x.chunks[1])
    batch, weight = segments(x.chunks[0]), _parameters(arrays)[0]
    tasks = {
        (name, b, t): (
            bound(projections.heads_backward_block, heads=heads.at(batch[b], rows[t].start), has_bias="bias" in arrays),
            (dx.name, b, 0, t, 0), (x.name, b, t, 0), weight,
        )
        for b, t in indices(*x.numblocks[:2])
    }  # fmt: skip
    layer = make_layer(name, tasks, [dx, x, *arrays.values()])
    rest = {
        (f"{name}-x", b, t, 0): (blocks.narrowed_item, [key], (x.name, b, t, 0)) for key in tasks for _, b, t in [key]
    }
    return layer.array(f"{name}-x", rest, x.chunks, x.dtype, x), _parameter_gradients(layer, list(tasks), arrays)


def _joined_backward(dout: Any, out: Any, arrays: dict[str, Any], heads: Heads) -> tuple[Any, dict[str, Any]]:
    """The gradients of `_joined`: of the output of all heads and of the parameters."""
    name, weight = task_name("attention-output-gradients", dout.name, out.name, *_names(arrays)), _parameters(arrays)[0]
    backward = bound(projections.output_backward_block, has_bias="bias" in arrays)
    tasks = {
        (name, b, t): (backward, (dout.name, b, t, 0), (out.name, b, 0, t, 0), weight)
        for b, t in indices(*dout.numblocks[:2])
    }
    layer = make_layer(name, tasks, [dout, out, *arrays.values()])
    rest = {
        (f"{name}-x", b, 0, t, 0): (blocks.narrowed_item, [key], (out.name, b, 0, t, 0))
        for key in tasks
        for _, b, t in [key]
    }
    return layer.array(f"{name}-x", rest, out.chunks, out.dtype, out), _parameter_gradients(layer, list(tasks), arrays)


def _parameter_gradients(layer: Any, keys: list[Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """The sums over blocks, whose tasks give (dx, dweight, dbias)."""
    found = {}
    for item, (part, array) in enumerate(sorted(arrays.items(), reverse=True), start=1):  # weight, bias
        tasks: dict[Any, Any] = {}
        name, index = f"{layer.name}-{part}", (0,) * array.ndim
        first, then = bound(blocks.summed, item=item), bound(blocks.summed, item=None)
        parts = tree(tasks, f"{name}-sum", index, keys, first, then)
        tasks[name, *index] = (blocks.narrowed, parts, (array.name, *index))
        found[part] = layer.array(name, tasks, array.chunks, array.dtype, array)
    return found


def _names(arrays: dict[str, Any]) -> list[str]:
    return [array.name for array in arrays.values()]

"""The attention weights of any mechanism, recomputed from what its forward pass kept."""

from __future__ import annotations

from typing import Any

from attnarray import checks
from attnarray.attention import engine
from attnarray.dispatch import ignoring_fp_errors


@ignoring_fp_errors
def attention_weights(ctx: Any, queries: slice = slice(None)) -> Any:
    r"""Return the attention weights of a forward pass, recomputed for the chosen queries.

    .. math:: p_{ij} = e^{s_{ij} - \mathrm{lse}_i}

    from the lse that it saved, or by another normalizer. So a fast kernel that never stores weights and a picture of
    them do not exclude each other.

    Parameters
    ----------
    ctx : context of an attention function
        From `scaled_dot_product_attention_fwd`, or the `_fwd` of any other mechanism.
    queries : slice
        Which queries, by index.

    Returns
    -------
    (*batch, H, rows, S) of the accumulator's dtype
        Without H where the mechanism has no heads. Before dropout. Rows sum to 1, less the sink's share; fully masked
        rows are 0. `layout` does not reorder them.

    Raises
    ------
    TypeError
        If `ctx` is not the context of an attention function, or `queries` is no slice.
    ValueError
        If the slice has a step.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.scaled_dot_product_attention_fwd(q, k, v, is_causal=True)
    >>> aa.attention_weights(ctx, slice(0, 1))[0, 0].round(3).tolist()
    [[1.0, 0.0, 0.0, 0.0]]
    """
    ctx = innermost(ctx)
    return ctx.layout._replace(order="BHTD").restore(canonical_weights(ctx, chosen_queries(ctx, queries)))


def innermost(ctx: Any) -> Any:
    """The context with the weights of a mechanism or layer that is built on another, checked."""
    while not has_weights(ctx) and hasattr(ctx, "attention"):
        ctx = ctx.attention
    if hasattr(ctx, "targets"):
        raise TypeError(
            "`ctx` is the context of graph attention, whose weights belong to edges and not to pairs of positions; "
            "use graph_attention_weights(ctx)."
        )
    if not has_weights(ctx):
        raise TypeError(
            f"`ctx` is {checks.shown(ctx)}, expected the context that the forward pass of an attention function "
            "gave, such as scaled_dot_product_attention_fwd(...)[1]."
        )
    return ctx


def chosen_queries(ctx: Any, queries: slice) -> slice:
    """A slice of the queries, checked, from start to stop."""
    if not isinstance(queries, slice):
        raise TypeError(f"`queries` is {checks.shown(queries)}, expected a slice such as slice(0, 1).")
    start, stop, step = queries.indices(ctx.q.shape[2])
    if step != 1:
        raise ValueError(f"`queries` has step {step}, expected 1; take every n-th row of the result instead.")
    return slice(start, max(start, stop))


def canonical_weights(ctx: Any, rows: slice) -> Any:
    """The weights of some queries in canonical layout: (B, H, rows, S)."""
    return ctx.weights_of_rows(rows) if hasattr(ctx, "weights_of_rows") else engine.weights(ctx, rows)


def has_weights(ctx: Any) -> bool:
    """Whether this is the context of attention whose weights are those of pairs of positions."""
    return isinstance(ctx, engine.AttentionContext) or hasattr(ctx, "weights_of_rows")

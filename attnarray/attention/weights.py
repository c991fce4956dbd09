"""The attention weights of any mechanism, recomputed from what its forward pass kept."""

from __future__ import annotations

from typing import Any

from attnarray import checks
from attnarray.attention.scoring import weights_from_lse
from attnarray.backend import Array
from attnarray.dispatch import ignoring_fp_errors


@ignoring_fp_errors
def attention_weights(ctx: Any, queries: slice = slice(None)) -> Array:
    r"""The attention weights of a forward pass, recomputed for the chosen queries from the lse that it saved.

    .. math:: p_{ij} = e^{s_{ij} - \mathrm{lse}_i}

    or by the rule of the mechanism, where that is no softmax. So a fast kernel that never stores weights and a picture
    of them do not exclude each other.

    Parameters
    ----------
    ctx : context of an attention function
        From `scaled_dot_product_attention_fwd`, or the `_fwd` of any other mechanism that weighs keys.
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
    while not _weighs(ctx) and hasattr(ctx, "attention"):  # of a mechanism or layer that is built on another
        ctx = ctx.attention
    if hasattr(ctx, "targets"):
        raise TypeError(
            "`ctx` is the context of graph attention, whose weights belong to edges and not to pairs of positions; "
            "use graph_attention_weights(ctx)."
        )
    if not _weighs(ctx):
        raise TypeError(
            f"`ctx` is {checks.shown(ctx)}, expected the context that the forward pass of an attention function "
            "gave, such as scaled_dot_product_attention_fwd(...)[1]."
        )
    if not isinstance(queries, slice):
        raise TypeError(f"`queries` is {checks.shown(queries)}, expected a slice such as slice(0, 1).")
    start, stop, step = queries.indices((ctx.lse if hasattr(ctx, "lse") else ctx.q).shape[2])
    if step != 1:
        raise ValueError(f"`queries` has step {step}, expected 1; take every n-th row of the result instead.")
    stop = max(start, stop)
    if hasattr(ctx, "weights_of_rows"):  # by a rule of its own
        weights = ctx.weights_of_rows(start, stop)
    else:
        weights = weights_from_lse(ctx.dots(start, stop), ctx.lse[:, :, start:stop], ctx.scoring.rows(start, stop))
    return ctx.form._replace(layout="BHTD").restored(weights)


def _weighs(ctx: Any) -> bool:
    """Whether it has the weights itself, by `weights_of_rows` or as the softmax of its `dots`."""
    return hasattr(ctx, "weights_of_rows") or hasattr(ctx, "dots")

"""What single heads do: how much a loss depends on them, and patterns that they are known for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attnarray import checks, tree
from attnarray.attention.weights import innermost
from attnarray.backend import Array, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.interpret.statistics import num_keys, weight_blocks
from attnarray.layers.initial import Params


def head_importance(params: Params, grads: Params, num_heads: int) -> dict[str, Any]:
    r"""Return the gradient of a gate on each head, from the gradients of the parameters.

    .. math::
        y = \sum_h g_h W_O^h o^h, \qquad
        \frac{\partial L}{\partial g_h} \Big|_{g=1} = \sum_i dy_i \cdot W_O^h o^h_i = \langle W_O^h,\, dW_O^h \rangle

    To first order, a loss L changes by -dL/dg without the head. No other backward pass is needed than that of training.

    Parameters
    ----------
    params, grads : trees
        Parameters of a model and their gradients.
    num_heads : int
        H, of every attention.

    Returns
    -------
    dict
        Path of the layer -> (H,), with signs; importance is the absolute value, as a mean over batches.

    References
    ----------
    Michel, Levy and Neubig, 2019, arXiv:1905.10650.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> encoder = aa.models.Encoder(dim=8, num_layers=2, num_heads=2)
    >>> params = encoder.init(aa.Philox(0))
    >>> y, ctx = encoder.fwd(params, np.random.default_rng(0).standard_normal((1, 5, 8), np.float32))
    >>> importance = aa.interpret.head_importance(params, encoder.bwd(y, ctx).params, num_heads=2)
    >>> {path: gates.shape for path, gates in importance.items()}
    {'blocks.0.attention': (2,), 'blocks.1.attention': (2,)}
    """
    found = {}
    for path, weight in _out_weights(params, num_heads):
        own, dweight = (_by_head(x, num_heads) for x in (weight, tree.get(grads, (*path, "out", "weight"))))
        found[tree.format_path(path)] = namespace_of(own).sum(own * dweight, axis=(0, 2))
    return found


def without_heads(params: Params, heads: Mapping[str, Any], num_heads: int) -> Params:
    r"""Return the parameters of the model without some heads: their columns of the output projection are 0.

    Parameters
    ----------
    params : tree
    heads : dict
        Path of the layer, as `head_importance` gives it -> the heads that are removed.
    num_heads : int
        H, of every attention.

    Returns
    -------
    tree
        New arrays for the changed ones; all others are shared.

    Examples
    --------
    >>> import attnarray as aa
    >>> params = aa.models.Encoder(dim=8, num_layers=2, num_heads=2).init(aa.Philox(0))
    >>> ablated = aa.interpret.without_heads(params, {"blocks.1.attention": [0]}, num_heads=2)
    >>> (ablated["blocks"][1]["attention"]["out"]["weight"] == 0).sum(axis=0).tolist()
    [8, 8, 8, 8, 0, 0, 0, 0]
    """
    weights = {tree.format_path(path): (path, weight) for path, weight in _out_weights(params, num_heads)}
    for name, removed in heads.items():
        if name not in weights:
            raise ValueError(f"`heads` has {name!r}, expected paths of attention in `params`: {', '.join(weights)}.")
        path, weight = weights[name]
        columns = weight.shape[1] // num_heads
        xp = namespace_of(weight)
        removed = {checks.whole(f"a head of {name}", head, 0, num_heads - 1, "an index of a head") for head in removed}
        kept = [1.0 - (n // columns in removed) for n in range(weight.shape[1])]
        params = tree.replace(params, (*path, "out", "weight"), weight * xp.asarray(kept, dtype=weight.dtype))
    return params


@ignoring_fp_errors
def previous_token_scores(ctx: Any) -> Any:
    r"""Return the mean weight of the position before each query, (B, H): 1 for a head that copies the previous token.

    .. math:: \frac{1}{T-1} \sum_{i \ge 1} p_{i, i-1}

    Parameters
    ----------
    ctx : context of self-attention

    References
    ----------
    Voita et al., 2019, arXiv:1905.09418 (positional heads). Elhage et al., 2021, "A mathematical framework for
    Transformer circuits".

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.scaled_dot_product_attention_fwd(q, k, v, is_causal=True)
    >>> aa.interpret.previous_token_scores(ctx).shape
    (1, 2)
    """
    return _mean_of_pairs(ctx, lambda xp, i, j: (i == j + 1)[None], first=1)


@ignoring_fp_errors
def induction_scores(ctx: Any, tokens: Array) -> Any:
    r"""Return the mean weight of positions that follow an earlier occurrence of the query's token, (B, H).

    .. math:: \frac{1}{|I|} \sum_{i \in I} \sum_{j \le i,\; t_{j-1} = t_i} p_{ij}

    over the positions I of tokens that occurred before. Induction heads copy from there, which is what in-context
    learning is thought to begin with. Take random tokens twice in a row as an input.

    Parameters
    ----------
    ctx : context of causal self-attention
    tokens : (B, T) integers

    References
    ----------
    Olsson et al., 2022, arXiv:2209.11895.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> tokens = np.tile(np.random.default_rng(0).permutation(50)[:8], 2)[None]
    >>> _, ctx = model.fwd(model.init(aa.Philox(0)), tokens)
    >>> contexts = aa.interpret.attention_contexts(ctx)
    >>> aa.interpret.induction_scores(contexts["blocks.1.attention"], tokens).shape
    (1, 2)
    """
    ctx = innermost(ctx)
    batch, _, T, _ = ctx.q.shape
    checks.shape("tokens", tokens, (batch, T), "one token for each query")
    xp = namespace_of(tokens)
    before = xp.concat([tokens[:, :1], tokens[:, :-1]], axis=1)  # of position 0 there is none: it is no target

    def follows(xp: Any, i: Any, j: Any) -> Any:
        same = xp.take(tokens, i[:, 0], axis=1)[:, :, None] == before[:, None, :]
        return same & (j <= i)[None] & (j > 0)[None]

    return _mean_of_pairs(ctx, follows)


def _mean_of_pairs(ctx: Any, chosen: Any, first: int = 0) -> Any:
    """The mean over queries, of those with a chosen key, of the weights of the chosen keys: (B, H)."""
    ctx = innermost(ctx)
    if ctx.q.shape[2] != num_keys(ctx):
        raise ValueError(f"`ctx` has {ctx.q.shape[2]} queries and {num_keys(ctx)} keys, expected self-attention.")
    total: Any = 0.0
    count: Any = 0
    for rows, weights in weight_blocks(ctx, slice(first, None)):
        xp = namespace_of(weights)
        i, j = xp.arange(rows.start, rows.stop)[:, None], xp.arange(weights.shape[3])[None, :]
        pairs = chosen(xp, i, j)  # (B|1, rows, S)
        total = total + xp.sum(xp.where(pairs[:, None], weights, 0.0), axis=(2, 3))
        count = count + xp.sum(xp.any(pairs, axis=2), axis=1)
    return total / namespace_of(total).astype(xp.where(count > 0, count, 1), total.dtype)[:, None]


def _out_weights(params: Params, num_heads: int) -> Iterator[tuple[tree.Path, Array]]:
    """The output projections (E, H Dv) of multi-head attention in a tree of parameters."""
    num_heads = checks.whole("num_heads", num_heads, 1, 2**31, "the number of heads")
    found = False
    for path, weight in tree.flatten(params):
        layer = tree.get(params, path[:-2]) if path[-2:] == ("out", "weight") else {}
        if {"query", "key", "value", "out"} <= set(layer):
            if weight.shape[1] % num_heads:
                raise ValueError(
                    f"`num_heads` ({num_heads}) must divide the columns of {tree.format_path(path)} "
                    f"({weight.shape[1]})."
                )
            found = True
            yield path[:-2], weight
    if not found:
        raise ValueError("`params` has no multi-head attention: no layer with query, key, value and out.")


def _by_head(weight: Array, num_heads: int) -> Array:
    xp = namespace_of(weight)
    return xp.reshape(weight, (weight.shape[0], num_heads, weight.shape[1] // num_heads))

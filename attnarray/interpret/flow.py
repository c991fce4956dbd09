"""How information flows through the layers of a model: attention rollout and attention flow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from attnarray import checks
from attnarray.attention.weights import chosen_queries, innermost
from attnarray.backend import Array, accumulator_dtype, device_of, namespace_of, to_numpy
from attnarray.dispatch import ignoring_fp_errors
from attnarray.interpret.statistics import num_keys, weight_blocks

MAX_FLOW_TOKENS = 200


@ignoring_fp_errors
def attention_rollout(contexts: Mapping[str, Any], *, queries: slice = slice(None), residual: float = 0.5) -> Any:
    r"""Return how much of each input reaches each output, if attention weights and residual connections pass it on.

    .. math::
        R^0 = I, \qquad R^n = \bigl(r\, I + (1 - r)\, \bar P^n\bigr) R^{n-1}, \qquad
        \bar P^n = \frac{1}{H} \sum_h P^{n,h}

    Computed from the last layer to the first for the chosen rows alone: no array of all pairs.

    Parameters
    ----------
    contexts : dict of contexts
        Self-attention of the layers, from the first to the last: `attention_contexts` of an encoder.
    queries : slice
        Which outputs, by index, without a step.
    residual : float
        r, the share of the residual connection.

    Returns
    -------
    (B, rows, T)
        Rows sum to 1 where no query is fully masked.

    Raises
    ------
    ValueError
        If a layer has other numbers of queries or keys: cross-attention is left out by the caller.

    References
    ----------
    Abnar and Zuidema, 2020, arXiv:2005.00928.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> encoder = aa.models.Encoder(dim=8, num_layers=2, num_heads=2)
    >>> x = np.random.default_rng(0).standard_normal((1, 5, 8), np.float32)
    >>> _, ctx = encoder.fwd(encoder.init(aa.Philox(0)), x)
    >>> rollout = aa.interpret.attention_rollout(aa.interpret.attention_contexts(ctx))
    >>> rollout.shape, rollout.sum(axis=-1).round(5).tolist()
    ((1, 5, 5), [[1.0, 1.0, 1.0, 1.0, 1.0]])
    """
    if not 0.0 <= residual <= 1.0:
        raise ValueError(f"`residual` is {residual}, expected 0 to 1: the share of the residual connection.")
    layers = self_attention(contexts)
    rollout = chosen_rows(layers[0], queries)
    for ctx in reversed(layers):
        passed = rows_times(rollout, _mean_weights(ctx))
        rollout = residual * rollout + (1.0 - residual) * passed
    return rollout


def attention_flow(contexts: Mapping[str, Any], *, query: int = -1, residual: float = 0.5) -> np.ndarray:
    """Return the maximum flow from each input to one output, in the network whose capacities are attention weights.

    Layers are rows of nodes; an edge from token j of a layer to token i of the next has the capacity
    r [i = j] + (1 - r) p_ij, with the mean over heads. For small inputs: networkx solves B x T problems of
    maximum flow.

    Parameters
    ----------
    contexts, residual
        As in `attention_rollout`.
    query : int
        The output, by index.

    Returns
    -------
    (B, T) float64 NumPy array

    Raises
    ------
    ValueError
        If there are more than 200 tokens; `attention_rollout` is for those.
    ImportError
        Without networkx.

    References
    ----------
    Abnar and Zuidema, 2020, arXiv:2005.00928.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> encoder = aa.models.Encoder(dim=8, num_layers=2, num_heads=2)
    >>> x = np.random.default_rng(0).standard_normal((1, 3, 8), np.float32)
    >>> _, ctx = encoder.fwd(encoder.init(aa.Philox(0)), x)
    >>> aa.interpret.attention_flow(aa.interpret.attention_contexts(ctx)).shape
    (1, 3)
    """
    try:
        import networkx
    except ImportError as error:
        raise ImportError("attention_flow needs networkx: pip install 'attnarray[interpret]'.") from error
    layers = self_attention(contexts)
    batch, _, tokens, _ = layers[0].q.shape
    if tokens > MAX_FLOW_TOKENS:
        raise ValueError(f"There are {tokens} tokens, expected at most {MAX_FLOW_TOKENS}; use attention_rollout.")
    query = range(tokens)[query]
    weights = [np.concatenate([to_numpy(rows) for _, rows in _mean_weights(ctx)], axis=1) for ctx in layers]
    flows = np.zeros((batch, tokens))
    for b in range(batch):
        network = networkx.DiGraph()
        for n, layer in enumerate(weights):
            capacities = residual * np.eye(tokens) + (1.0 - residual) * layer[b]
            for i, j in zip(*np.nonzero(capacities), strict=True):
                network.add_edge((n, int(j)), (n + 1, int(i)), capacity=float(capacities[i, j]))
        target = (len(weights), query)
        for j in range(tokens):
            if (0, j) in network and target in network:
                flows[b, j] = networkx.maximum_flow_value(network, (0, j), target)
    return flows


def chosen_rows(ctx: Any, queries: slice) -> Array:
    """The rows of an identity matrix for some queries: (B, rows, T)."""
    chosen, xp = chosen_queries(ctx, queries), namespace_of(ctx.q)
    wide = accumulator_dtype(xp, ctx.q.dtype)
    rows = xp.eye(chosen.stop - chosen.start, ctx.q.shape[2], k=chosen.start, dtype=wide, device=device_of(ctx.q))
    return xp.broadcast_to(rows, (ctx.q.shape[0], *rows.shape))


def rows_times(rows: Array, blocks: Iterable[tuple[slice, Array]]) -> Array:
    """Rows (B, R, T) times a matrix (B, T, S), given by blocks of its rows."""
    total: Any = 0.0
    for block, matrix in blocks:
        total = total + rows[:, :, block] @ matrix
    return total


def self_attention(contexts: Mapping[str, Any]) -> list[Any]:
    """The contexts of layers, checked for equal numbers of queries and keys."""
    if not isinstance(contexts, Mapping) or not contexts:
        raise TypeError(f"`contexts` is {checks.shown(contexts)}, expected the dict that attention_contexts returns.")
    layers = {name: innermost(ctx) for name, ctx in contexts.items()}
    tokens = next(iter(layers.values())).q.shape[2]
    for name, ctx in layers.items():
        if (ctx.q.shape[2], num_keys(ctx)) != (tokens, tokens):
            raise ValueError(
                f"{name} has {ctx.q.shape[2]} queries and {num_keys(ctx)} keys, but the first layer has {tokens} "
                "queries: expected self-attention of one sequence. Leave out others from `contexts`."
            )
    return list(layers.values())


def _mean_weights(ctx: Any) -> Iterable[tuple[slice, Array]]:
    return ((rows, namespace_of(weights).mean(weights, axis=1)) for rows, weights in weight_blocks(ctx))

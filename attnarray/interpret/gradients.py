"""Attributions by gradients: of attention weights, through all layers, and along a path to an input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.attention.products import dot_products
from attnarray.attention.weights import canonical_weights, chosen_queries, innermost
from attnarray.backend import Array, accumulator_dtype, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.hooks import backward_hook
from attnarray.interpret.flow import chosen_rows, rows_times, self_attention
from attnarray.interpret.statistics import weight_blocks


class Attributions(NamedTuple):
    """Of integrated gradients: what each entry of the input contributes, and the error of their sum."""

    values: Any
    error: float


def attention_cotangents(contexts: Mapping[str, Any], backward: Callable[[], Any]) -> dict[str, Any]:
    """Run a backward pass, and return the cotangent of the output of each attention.

    Parameters
    ----------
    contexts : dict of contexts
        From `attention_contexts`.
    backward : function without arguments
        That calls the backward of the model with its context, such as ``lambda: model.bwd(dlogits, ctx)``.

    Returns
    -------
    dict
        Path -> cotangent, in the layout of the output of the attention.

    Raises
    ------
    ValueError
        If the backward pass did not reach one of the contexts, or it is of a mechanism with a loop of its own (location
        and predictive local attention), for which cotangents are not recorded.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> encoder = aa.models.Encoder(dim=8, num_layers=2, num_heads=2)
    >>> x = np.random.default_rng(0).standard_normal((1, 5, 8), np.float32)
    >>> y, ctx = encoder.fwd(encoder.init(aa.Philox(0)), x)
    >>> contexts = aa.interpret.attention_contexts(ctx)
    >>> douts = aa.interpret.attention_cotangents(contexts, lambda: encoder.bwd(y, ctx))
    >>> {name: dout.shape for name, dout in douts.items()}
    {'blocks.0.attention': (1, 5, 2, 4), 'blocks.1.attention': (1, 5, 2, 4)}
    """
    recorded: list[tuple[Any, Any]] = []
    with backward_hook(lambda ctx, dout: recorded.append((ctx, dout))):
        backward()
    found = {}
    for name, ctx in contexts.items():
        own = innermost(ctx)
        douts = [dout for each, dout in recorded if each is own]
        if not douts:
            raise ValueError(
                f"The backward pass gave no cotangent for {name}: call the backward of the same model with the same "
                "ctx. Mechanisms with a loop of their own, such as location attention, record none."
            )
        found[name] = douts[0]
    return found


@ignoring_fp_errors
def gradient_times_attention(ctx: Any, dout: Array, queries: slice = slice(None)) -> Any:
    r"""Return the attention weights times their gradients.

    .. math:: p_{ij}\, dp_{ij}, \qquad dp_{ij} = do_i \cdot v_j

    Parameters
    ----------
    ctx : context of an attention function
    dout : the shape of its output
        The cotangent, from `attention_cotangents`.
    queries : slice
        Which queries, by index.

    Returns
    -------
    (*batch, H, rows, S)

    References
    ----------
    Barkan et al., 2021, "Grad-SAM", arXiv:2204.11073.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.scaled_dot_product_attention_fwd(q, k, v)
    >>> aa.interpret.gradient_times_attention(ctx, np.ones_like(out)).shape
    (1, 2, 4, 4)
    """
    ctx = innermost(ctx)
    checks.shape("dout", dout, ctx.out_shape, "the shape of the output of the attention")
    rows = chosen_queries(ctx, queries)
    return ctx.layout._replace(order="BHTD").restore(_products(ctx, dout, rows, canonical_weights(ctx, rows)))


@ignoring_fp_errors
def relevance(contexts: Mapping[str, Any], cotangents: Mapping[str, Any], *, queries: slice = slice(None)) -> Any:
    r"""Return the relevance of each input to chosen outputs, from attention weights and their gradients.

    .. math::
        R^0 = I, \qquad R^n = R^{n-1} + \bar A^n R^{n-1}, \qquad
        \bar A^n_{ij} = \frac{1}{H} \sum_h \max(0,\, p^{n,h}_{ij}\, dp^{n,h}_{ij})

    The sum with R is the residual connection. Computed from the last layer to the first for the chosen rows alone.

    Parameters
    ----------
    contexts, queries
        As in `attention_rollout`. For a classifier that uses the first token: ``queries=slice(0, 1)``.
    cotangents : dict
        From `attention_cotangents`, of the logit that is explained.

    Returns
    -------
    (B, rows, T)

    References
    ----------
    Chefer, Gur and Wolf, 2021, arXiv:2103.15679 (self-attention).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> encoder = aa.models.Encoder(dim=8, num_layers=2, num_heads=2)
    >>> x = np.random.default_rng(0).standard_normal((1, 5, 8), np.float32)
    >>> y, ctx = encoder.fwd(encoder.init(aa.Philox(0)), x)
    >>> contexts = aa.interpret.attention_contexts(ctx)
    >>> douts = aa.interpret.attention_cotangents(contexts, lambda: encoder.bwd(y, ctx))
    >>> aa.interpret.relevance(contexts, douts, queries=slice(0, 1)).shape
    (1, 1, 5)
    """
    layers = self_attention(contexts)
    if list(contexts) != list(cotangents):
        raise ValueError(f"`cotangents` are of {list(cotangents)}, expected those of `contexts`: {list(contexts)}.")
    rows = chosen_rows(layers[0], queries)
    for ctx, dout in zip(reversed(layers), reversed(list(cotangents.values())), strict=True):
        rows = rows + rows_times(rows, _positive_means(ctx, dout))
    return rows


def integrated_gradients(
    gradient: Callable[[Any], tuple[float, Any]], x: Array, baseline: Array | None = None, *, steps: int = 32
) -> Attributions:
    r"""Return what each entry of an input contributes to a number, by the integral of its gradient.

    .. math::
        a = (x - x') \odot \int_0^1 \nabla f\bigl(x' + t (x - x')\bigr)\, dt, \qquad \sum a = f(x) - f(x')

    by the midpoint rule.

    Parameters
    ----------
    gradient : function
        From an input to (f, the gradient of f), by a forward and a backward pass.
    x : array
    baseline : the shape of x, optional
        x', an input without information; zeros by default.
    steps : int
        Number of gradients.

    Returns
    -------
    Attributions
        values, of the shape of x; error, the difference of their sum and f(x) - f(x'): more steps make it smaller.

    References
    ----------
    Sundararajan, Taly and Yan, 2017, arXiv:1703.01365.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> found = aa.interpret.integrated_gradients(lambda x: (float((x**2).sum()), 2 * x), np.array([1.0, 3.0]))
    >>> found.values.round(9).tolist(), abs(found.error) < 1e-9
    ([1.0, 9.0], True)
    """
    checks.floating(x=x)
    steps = checks.whole("steps", steps, 1, 2**31, "the number of gradients")
    xp = namespace_of(x)
    start = xp.zeros_like(x) if baseline is None else baseline
    checks.shape("baseline", start, tuple(x.shape), "the shape of `x`")
    total: Any = 0.0
    for n in range(steps):
        _, dx = gradient(start + (n + 0.5) / steps * (x - start))
        checks.shape("gradient(x)[1]", dx, tuple(x.shape), "the shape of `x`")
        total = total + dx
    values = (x - start) * (total / steps)
    difference = float(gradient(x)[0]) - float(gradient(start)[0])
    return Attributions(values, float(xp.sum(values)) - difference)


def _products(ctx: Any, dout: Array, rows: slice, weights: Array) -> Array:
    """p dp of some queries: (B, H, rows, S)."""
    xp = namespace_of(dout)
    wide = accumulator_dtype(xp, ctx.q.dtype)
    dout, v = (xp.astype(x, wide, copy=False) for x in (ctx.layout.canonical(dout)[:, :, rows, :], ctx.v))
    return xp.where(weights == 0, 0.0, weights * dot_products(dout, v))


def _positive_means(ctx: Any, dout: Array) -> Iterator[tuple[slice, Array]]:
    """The means over heads of the positive part of p dp, some rows after the other."""
    for rows, weights in weight_blocks(ctx):
        xp, products = namespace_of(weights), _products(ctx, dout, rows, weights)
        yield rows, xp.mean(xp.where(products > 0, products, 0.0), axis=1)

"""The states between the blocks of a model: read by the output layer, and replaced by those of another input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of
from attnarray.hooks import forward_hook
from attnarray.layers.initial import Params
from attnarray.models.gpt import GPT
from attnarray.ops.linear import linear


def logit_lens(model: GPT, params: Params, tokens: Array, **options: Any) -> list[Any]:
    r"""Return the logits that the output layer would give for the states after each block.

    .. math:: \mathrm{logits}^n = W\, \mathrm{norm}(x^n)

    Parameters
    ----------
    model : GPT
    params : tree
    tokens : (B, T) integers
    **options
        Of the call of the model.

    Returns
    -------
    list of (B, T, V)
        For the embeddings and each block; the last one is the model's own output.

    References
    ----------
    nostalgebraist, 2020, "interpreting GPT: the logit lens". Belrose et al., 2023, arXiv:2303.08112.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> params, tokens = model.init(aa.Philox(0)), np.array([[3, 1, 4]])
    >>> [bool(np.allclose(x, model(params, tokens))) for x in aa.interpret.logit_lens(model, params, tokens)]
    [False, False, True]
    """
    if not isinstance(model, GPT):
        raise TypeError(f"`model` is {checks.shown(model)}, expected a GPT: its output layer reads every state.")
    *states, last = model.states(params, tokens, **options)  # the last one is normed
    norm = model.body.parts()["norm"]
    weight = params["token" if model.tie_embeddings else "logits"]["weight"]
    return [linear(x, weight) for x in (*(norm(params["norm"], x) for x in states), last)]


def causal_trace(
    run: Callable[[Any], Any], clean: Any, corrupted: Any, metric: Callable[[Any], float]
) -> list[list[float]]:
    """Return a metric of the corrupted input, with one state restored to that of the clean input at a time.

    Where the metric comes back, the state after that block, at that position, holds what the corruption removed.

    Parameters
    ----------
    run : function
        From an input to the output of a model with one stack of blocks: ``lambda tokens: model(params, tokens)``.
    clean, corrupted : inputs of `run`
        Of equal shape.
    metric : function
        From an output to a number, such as the logit of the right answer.

    Returns
    -------
    list of lists
        metric[n][t] for block n and position t.

    Raises
    ------
    ValueError
        If the states of both inputs differ in shape, or `run` does not run a stack of blocks.

    References
    ----------
    Meng et al., 2022, arXiv:2202.05262 (causal tracing). Vig et al., 2020, arXiv:2004.12265.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> params = model.init(aa.Philox(0))
    >>> clean, corrupted = np.array([[3, 1, 4]]), np.array([[2, 1, 4]])
    >>> trace = aa.interpret.causal_trace(
    ...     lambda tokens: model(params, tokens), clean, corrupted, lambda logits: float(logits[0, -1, 5])
    ... )
    >>> len(trace), len(trace[0]), trace[1][2] == float(model(params, clean)[0, -1, 5])
    (2, 3, True)
    """
    states, others = _states(run, clean), _states(run, corrupted)
    if not states:
        raise ValueError("`run` computed no block of an encoder or decoder: expected a function that calls a model.")
    for n, (x, y) in enumerate(zip(states, others, strict=True)):
        if x.shape != y.shape:
            raise ValueError(
                f"The states after block {n} have shape {tuple(x.shape)} for `clean` and {tuple(y.shape)} for "
                "`corrupted`; both inputs need equally many positions."
            )
    return [
        [_restored(run, corrupted, states, n, t, metric) for t in range(states[n].shape[-2])]
        for n in range(len(states))
    ]


def _states(run: Callable[[Any], Any], x: Any) -> list[Any]:
    """The output of each block."""
    found: list[Any] = []

    def keep(stack: Any, n: int, state: Any) -> Any:
        found.append(state)
        return state

    with forward_hook(keep):
        run(x)
    return found


def _restored(
    run: Callable[[Any], Any], x: Any, states: list[Any], block: int, position: int, metric: Callable[[Any], float]
) -> float:
    """The metric of an input with the state after a block, at a position, replaced."""
    calls = iter(range(len(states)))

    def replace(stack: Any, n: int, state: Any) -> Any:
        if next(calls) != block:
            return state
        xp = namespace_of(state)
        here = xp.arange(state.shape[-2], device=device_of(state)) == position
        return xp.where(here[:, None], states[block], state)

    with forward_hook(replace):
        return float(metric(run(x)))

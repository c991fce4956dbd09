"""Writing on: the tokens after a prompt, one at a time or all at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of
from attnarray.layers.initial import Params
from attnarray.models.generation.beam import beam_search
from attnarray.models.generation.prompts import Begun, Generator, begin
from attnarray.models.generation.sampling import draw, finite_or_certain, keep_top_k, keep_top_p, with_temperature
from attnarray.models.places import check_tokens
from attnarray.random import Philox

METHODS = ("greedy", "sample", "beam")


class Choice(NamedTuple):
    """How a token is chosen: the likeliest without an `rng`, else drawn."""

    rng: Philox | None
    temperature: float
    top_k: int | None
    top_p: float | None

    def of(self, logits: Array, step: int) -> Array:
        """A token (B,) for each row (B, V), as `finite_or_certain` gives them."""
        if self.rng is None:
            return namespace_of(logits).argmax(logits, axis=-1)
        logits = with_temperature(logits, self.temperature)
        logits = logits if self.top_k is None else keep_top_k(logits, self.top_k)
        logits = logits if self.top_p is None else keep_top_p(logits, self.top_p)
        return draw(logits, self.rng.fold_in(step))


def generate(
    model: Generator, params: Params, tokens: Array, count: int, *, method: str = "greedy", temperature: float = 1.0,
    top_k: int | None = None, top_p: float | None = None, beams: int = 4, length_penalty: float = 1.0,
    end: int | None = None, rng: Philox | int | None = None, lengths: Any = None,
    early_stopping: bool | str | None = None,
) -> Array:  # fmt: skip
    """The tokens that a model writes after prompts.

    Parameters
    ----------
    model : GPT, or another model with `cache` and `step`
    params : dict
    tokens : (B, T) integer
        Prompts of at least one token.
    count : int
        At most so many tokens follow.
    method : {"greedy", "sample", "beam"}
        The likeliest token each time; one drawn by its probability; or the likeliest text of a `beam_search`.
    temperature, top_k, top_p
        For "sample", in this order: see `with_temperature`, `keep_top_k`, `keep_top_p`.
    beams, length_penalty, early_stopping
        For "beam": see `beam_search`.
    end : int, optional
        The token that ends a text. What follows it in its row is `end`; where all rows have it, writing stops.
    rng : Philox or int, optional
        For "sample": the same one gives the same tokens, on every backend, whatever the other rows of the batch are.
    lengths : (B,) integers, optional
        Of prompts of different lengths, padded with any tokens behind them.

    Returns
    -------
    (B, N) array of integers
        What follows the prompts; N is `count`, or less where all rows have ended. In the library's default integer
        dtype, whatever that of the prompts is.

    Raises
    ------
    ValueError
        If an option is out of its range or of another method, `rng` is missing, the model has no place for so many
        tokens, or the logits of a row that has not ended hold NaN, or -inf for every token.

    Notes
    -----
    Tokens are chosen from logits in float64 where the library has it, whatever the dtype of the model. Logits of +inf
    share all probability.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, heads=2)
    >>> params, prompts = model.init(aa.Philox(0)), np.array([[3, 1, 4], [1, 5, 0]])
    >>> aa.models.generate(model, params, prompts, 6, lengths=[3, 2]).shape
    (2, 6)
    >>> aa.models.generate(model, params, prompts, 6, method="sample", top_p=0.9, rng=aa.Philox(1)).shape
    (2, 6)
    """
    checks.one_of("method", method, METHODS)
    if method == "beam":
        _refuse_sampling_options(method, temperature, top_k, top_p)
        options = {"beams": beams, "length_penalty": length_penalty, "end": end, "lengths": lengths}
        options["early_stopping"] = early_stopping
        return beam_search(model, params, tokens, count, **options).tokens
    others = {"beams": None if beams == 4 else beams, "length_penalty": None if length_penalty == 1 else length_penalty}
    _refuse_options(method, "beam", {**others, "early_stopping": early_stopping})
    tokens = check_tokens(tokens)
    written = list(
        stream(
            model, params, tokens, count, method=method, temperature=temperature, top_k=top_k, top_p=top_p, end=end,
            rng=rng, lengths=lengths,
        )
    )  # fmt: skip
    xp = namespace_of(tokens)
    return xp.stack(written, axis=1) if written else tokens[:, :0]


def stream(
    model: Generator, params: Params, tokens: Array, count: int, *, method: str = "greedy", temperature: float = 1.0,
    top_k: int | None = None, top_p: float | None = None, end: int | None = None, rng: Philox | int | None = None,
    lengths: Any = None,
) -> Iterator[Array]:  # fmt: skip
    """The tokens that `generate` returns, (B,) at a time, each as soon as it is there; not by beam search.

    Arguments are checked, and the prompts read, when it is called.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, heads=2)
    >>> [token.shape for token in aa.models.stream(model, model.init(aa.Philox(0)), np.array([[3, 1]]), 3)]
    [(1,), (1,), (1,)]
    """
    checks.one_of("method", method, METHODS[:2])
    if method == "greedy":
        _refuse_sampling_options(method, temperature, top_k, top_p)
        choice = Choice(None, 1.0, None, None)
    else:
        if rng is None:
            raise ValueError('`rng` is None, but method="sample" draws at random. Give rng=attnarray.Philox(seed).')
        choice = Choice(rng if isinstance(rng, Philox) else Philox(rng), temperature, top_k, top_p)
    tokens, count = check_tokens(tokens), checks.whole("count", count, 0, 2**31, "how many tokens to write")
    begun = begin(model, params, tokens, count, lengths)
    if end is not None:
        end = checks.whole("end", end, 0, begun.logits.shape[1] - 1, "a token of the model")
    choice.of(begun.logits[:0, :], 0)  # which checks its options
    return _stream(model, params, tokens, count, choice, end, begun)


def _stream(
    model: Generator, params: Params, tokens: Array, count: int, choice: Choice, end: int | None, begun: Begun
) -> Iterator[Array]:
    xp = namespace_of(tokens)
    logits, cache = begun
    ended = xp.zeros((tokens.shape[0],), dtype=xp.bool, device=device_of(tokens))
    for n in range(count):
        known = finite_or_certain(logits, None if end is None else ~ended)
        told = xp.astype(choice.of(known, n), tokens.dtype)  # (B,)
        if end is not None:
            told = xp.where(ended, xp.full_like(told, end), told)
            ended = ended | (told == end)
        yield told
        if n == count - 1 or (end is not None and bool(xp.all(ended))):
            return
        logits, cache = model.step(params, told[:, None], cache, last=True)
        logits = logits[:, -1, :]


def _refuse_sampling_options(method: str, temperature: float, top_k: int | None, top_p: float | None) -> None:
    given = {"temperature": None if temperature == 1 else temperature, "top_k": top_k, "top_p": top_p}
    _refuse_options(method, "sample", given)


def _refuse_options(method: str, other: str, given: dict[str, Any]) -> None:
    """Check that no options of another method are given to this one, which would pass over them."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f'`{name}` is {checks.shown(value)}, but method={method!r}; it is for method="{other}".')

"""Autoregressive generation of the tokens after a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of
from attnarray.layers.initial import Params
from attnarray.models.generation.beam import beam_search
from attnarray.models.generation.beam_rules import EarlyStopping
from attnarray.models.generation.processors import Processor, apply_processors, check_stop, ends_with
from attnarray.models.generation.prompts import AnyGenerator, Generator, Prefill, left_pad, prefill, with_params
from attnarray.models.generation.sampling import draw, finite_or_certain, keep_top_k, keep_top_p, with_temperature
from attnarray.models.generation.speculative import Writer, check_draft, check_pair, speculate
from attnarray.models.padding import check_tokens
from attnarray.random import Philox

Method = Literal["greedy", "sample", "beam"]
METHODS: tuple[Method, ...] = get_args(Method)


class Sampler(NamedTuple):
    """How the next token is selected: the most likely one without an `rng`, else a sample."""

    rng: Philox | None
    temperature: float
    top_k: int | None
    top_p: float | None

    def select(self, logits: Array, step: int) -> Any:
        """Return a token (B,) for each row (B, V) of logits from `finite_or_certain`."""
        if self.rng is None:
            return namespace_of(logits).argmax(logits, axis=-1)
        return draw(self.filtered(logits), self.rng.fold_in(step))

    def filtered(self, logits: Any) -> Any:
        """The logits that a sample is drawn from."""
        logits = with_temperature(logits, self.temperature)
        logits = logits if self.top_k is None else keep_top_k(logits, self.top_k)
        return logits if self.top_p is None else keep_top_p(logits, self.top_p)


def generate(
    model: AnyGenerator, params: Params | None, tokens: Array, count: int, *, method: Method = "greedy",
    temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, beams: int = 4,
    length_penalty: float = 1.0, end: int | None = None, rng: Philox | int | None = None, lengths: Any = None,
    early_stopping: EarlyStopping | None = None, draft: tuple[AnyGenerator, Params | None] | None = None,
    draft_tokens: int = 4, starts: Any = None, stop: Any = None, processors: Sequence[Processor] = (),
    page_size: int | None = None,
) -> Any:  # fmt: skip
    """Generate the tokens after prompts.

    Parameters
    ----------
    model : GPT, another model with `cache` and `step`, or what `GPT.prepare` returns
    params : dict
        None with a prepared model, which has its parameters.
    tokens : (B, T) integer
        Prompts of at least one token.
    count : int
        Largest number of new tokens.
    method : {"greedy", "sample", "beam"}
        The most likely token each time; a sample of the distribution; or the best sequence of a `beam_search`.
    temperature, top_k, top_p
        For "sample", applied in this order: see `with_temperature`, `keep_top_k`, `keep_top_p`.
    beams, length_penalty, early_stopping
        For "beam": see `beam_search`.
    end : int, optional
        The end-of-sequence token. After it a row is filled with `end`; generation stops when all rows have ended.
    rng : Philox or int, optional
        For "sample": the same generator gives the same tokens, on every backend, independent of other rows.
    lengths : (B,) integers, optional
        Lengths of right-padded prompts.
    starts : (B,) integers, optional
        Lengths of the left padding of left-padded prompts, instead of `lengths`.
    stop : sequence of sequences of tokens, optional
        A row also ends when its new tokens end with one of these; it is filled with `end` then. Not for "beam".
    processors : sequence of functions
        Called with all tokens (B, N) so far and the logits (B, V), before the other options, they return logits: such
        as `penalize_repetition`. Padding holds the first token of a prompt. Not for "beam" or with `draft`.
    draft : (model, params), optional
        A smaller model of the same tokens, for "greedy" and "sample": it drafts `draft_tokens` tokens, which one step
        of `model` verifies. Greedy tokens are the same as without, up to rounding of the logits; samples have the same
        distribution. Rows go on together, so that few rows gain most.
    page_size : int, optional
        Keeps keys and values in pages of so many positions, which beams and equal prompts share until they differ, and
        processes equal prompts once. Tokens are the same up to rounding of the logits; steps gather the pages.

    Returns
    -------
    (B, N) array of integers
        The new tokens; N is `count`, or less if all rows have ended. In the library's default integer dtype.

    Raises
    ------
    ValueError
        If an option is out of range or belongs to another method, `rng` is missing, the sequence would exceed the
        model's `max_seq_len`, or the logits of a row that has not ended hold NaN, or -inf for every token.

    Notes
    -----
    Tokens are selected from logits in float64 where the library has it, whatever the dtype of the model. Logits of
    +inf share all probability.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> params, prompts = model.init(aa.Philox(0)), np.array([[3, 1, 4], [1, 5, 0]])
    >>> aa.models.generate(model, params, prompts, 6, lengths=[3, 2]).shape
    (2, 6)
    >>> aa.models.generate(model, params, prompts, 6, method="sample", top_p=0.9, rng=aa.Philox(1)).shape
    (2, 6)
    >>> aa.models.generate(model.prepare(params), None, prompts, 6).shape
    (2, 6)
    """
    checks.choice("method", method, METHODS)
    if method == "beam":
        _refuse_sampling_options(method, temperature, top_k, top_p)
        options = {"beams": beams, "length_penalty": length_penalty, "end": end, "lengths": lengths}
        options |= {"early_stopping": early_stopping, "starts": starts, "page_size": page_size}
        _refuse_options(method, "greedy", {"draft": draft, "stop": stop, "processors": tuple(processors) or None})
        return beam_search(model, params, tokens, count, **options).tokens
    others = {"beams": None if beams == 4 else beams, "length_penalty": None if length_penalty == 1 else length_penalty}
    _refuse_options(method, "beam", {**others, "early_stopping": early_stopping})
    tokens = check_tokens(tokens)
    found = list(
        stream(
            model, params, tokens, count, method=method, temperature=temperature, top_k=top_k, top_p=top_p, end=end,
            rng=rng, lengths=lengths, draft=draft, draft_tokens=draft_tokens, starts=starts, stop=stop,
            processors=processors, page_size=page_size,
        )
    )  # fmt: skip
    xp = namespace_of(tokens)
    return xp.stack(found, axis=1) if found else tokens[:, :0]


def stream(
    model: AnyGenerator, params: Params | None, tokens: Array, count: int, *,
    method: Literal["greedy", "sample"] = "greedy", temperature: float = 1.0, top_k: int | None = None,
    top_p: float | None = None, end: int | None = None, rng: Philox | int | None = None, lengths: Any = None,
    draft: tuple[AnyGenerator, Params | None] | None = None, draft_tokens: int = 4, starts: Any = None,
    stop: Any = None, processors: Sequence[Processor] = (), page_size: int | None = None,
) -> Iterator[Any]:  # fmt: skip
    """Yield the tokens that `generate` returns, (B,) at a time; not for beam search.

    Arguments are validated and the prompts processed in the call itself.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> [token.shape for token in aa.models.stream(model, model.init(aa.Philox(0)), np.array([[3, 1]]), 3)]
    [(1,), (1,), (1,)]
    """
    checks.choice("method", method, METHODS[:2])
    if method == "greedy":
        _refuse_sampling_options(method, temperature, top_k, top_p)
        sampler = Sampler(None, 1.0, None, None)
    else:
        if rng is None:
            raise ValueError('`rng` is None, but method="sample" needs a generator. Give rng=attnarray.Philox(seed).')
        sampler = Sampler(rng if isinstance(rng, Philox) else Philox(rng), temperature, top_k, top_p)
    tokens, count = check_tokens(tokens), checks.whole("count", count, 0, 2**31, "the number of tokens to generate")
    model, params = with_params(model, params)
    prefilled = prefill(model, params, tokens, count, lengths, starts, page_size)
    if end is not None:
        end = checks.whole("end", end, 0, prefilled.logits.shape[1] - 1, "a token of the model")
    sampler.select(prefilled.logits[:0, :], 0)  # validates its options
    stop, processors = check_stop(stop, end), tuple(processors)
    if draft is not None:
        if stop or processors:
            raise ValueError("`draft` is given with `stop` or `processors`, which it does not know: leave one out.")
        width = checks.whole("draft_tokens", draft_tokens, 1, 2**31, "the tokens that are drafted at a time")
        small, small_params = check_draft(draft)
        drafted = prefill(small, small_params, tokens, count, lengths, starts, page_size)
        check_pair(prefilled, drafted)
        writers = Writer(model, params, prefilled.cache), Writer(small, small_params, drafted.cache)
        return speculate(*writers, prefilled, tokens, count, sampler, end, width) if count else iter(())
    before, _ = left_pad(tokens, lengths, starts)
    return _stream(model, params, before, count, sampler, end, prefilled, stop, processors)


def _stream(
    model: Generator, params: Params, tokens: Array, count: int, sampler: Sampler, end: int | None, prefilled: Prefill,
    stop: list[list[int]], processors: Sequence[Processor],
) -> Iterator[Array]:  # fmt: skip
    xp = namespace_of(tokens)
    logits, cache = prefilled
    found: list[Array] = []
    ended = xp.zeros((tokens.shape[0],), dtype=xp.bool, device=device_of(tokens))
    for n in range(count):
        if processors:
            past = [tokens, *(one[:, None] for one in found)]
            logits = apply_processors(processors, namespace_of(tokens).concat(past, axis=1), logits)
        known = finite_or_certain(logits, None if end is None else ~ended)
        token = xp.astype(sampler.select(known, n), tokens.dtype)  # (B,)
        if end is not None:
            token = xp.where(ended, xp.full_like(token, end), token)
            ended = ended | (token == end)
        found.append(token)
        stopped = ends_with(found, stop)
        ended = ended if stopped is None else ended | stopped
        yield token
        if n == count - 1 or (end is not None and bool(xp.all(ended))):
            return
        logits, cache = model.step(params, token[:, None], cache, last=True)
        logits = logits[:, -1, :]


def _refuse_sampling_options(method: str, temperature: float, top_k: int | None, top_p: float | None) -> None:
    given = {"temperature": None if temperature == 1 else temperature, "top_k": top_k, "top_p": top_p}
    _refuse_options(method, "sample", given)


def _refuse_options(method: str, other: str, given: dict[str, Any]) -> None:
    """Check that no options of another method are given, which this one would ignore."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f'`{name}` is {checks.shown(value)}, but method={method!r}; it is for method="{other}".')

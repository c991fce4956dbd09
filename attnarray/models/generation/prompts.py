"""Processing of prompts before generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from attnarray import checks, tree
from attnarray.backend import Array, device_of, dtype_name, library_name, namespace_of, to_numpy, use_backend
from attnarray.layers.checking import check_params
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.models.padding import check_starts, check_tokens
from attnarray.models.prepared.stack import Prepared

if TYPE_CHECKING:
    from attnarray.models.prepared.gpt import PreparedGPT


class Generator(Protocol):
    """A model that generates token by token, such as `GPT`."""

    def cache(
        self, batch: int, max_seq_len: int | None = None, dtype: str = "float32", *, starts: Any = None
    ) -> Any: ...

    def step(self, params: Params, tokens: Array, cache: Any, *, last: bool = False) -> tuple[Any, Any]: ...


AnyGenerator: TypeAlias = "Generator | PreparedGPT"


class Bound(NamedTuple):
    """A prepared model, called like one that is given its parameters."""

    prepared: Any

    def cache(self, *args: Any, **kwargs: Any) -> Any:
        """See `PreparedGPT.cache`."""
        return self.prepared.cache(*args, **kwargs)

    def step(self, _params: Params, tokens: Array, cache: Any, *, last: bool = False) -> tuple[Any, Any]:
        """See `PreparedGPT.step`."""
        return self.prepared.step(tokens, cache, last=last)


def with_params(model: AnyGenerator, params: Params | None) -> tuple[Generator, Params]:
    """A model to be called with parameters, and these; a prepared model has them, and `params` is None."""
    if isinstance(model, Prepared):
        if params is not None:
            raise TypeError(
                "`params` is given, but a prepared model has its parameters: give None, as in "
                "generate(model.prepare(params), None, tokens, count)."
            )
        return Bound(model), model.params
    if params is None:
        raise TypeError("`params` is None, expected a dict: only prepared models have their own parameters.")
    return model, params


class Prefill(NamedTuple):
    """The logits (B, V) of the token after each prompt, and the cache that holds the prompts."""

    logits: Array
    cache: Any


def prefill(
    model: Generator, params: Params, tokens: Array, count: int, lengths: Any, starts: Any = None,
    page_size: int | None = None,
) -> Prefill:  # fmt: skip
    """Process the prompts, with a cache for `count` more tokens; in pages, equal prompts are processed once."""
    if not (hasattr(model, "cache") and hasattr(model, "step")):
        raise TypeError(
            f"`model` is {checks.shown(model)}, expected one with `cache` and `step`, such as attnarray.models.GPT; "
            "the order is model, params, tokens, count."
        )
    count = checks.whole("count", count, 0, 2**31, "the number of tokens to generate")
    tokens = check_tokens(tokens)
    if not tokens.shape[1]:
        raise ValueError("`tokens` has no positions, expected prompts of at least one token: (B, T) with T > 0.")
    tokens, starts = left_pad(tokens, lengths, starts)
    rows: Any = None
    if page_size is not None:
        tokens, starts, rows = _without_repetitions(tokens, starts)
    max_seq_len = tokens.shape[1] + max(count - 1, 0)  # the last new token is not processed
    if not hasattr(model, "cache") or not hasattr(model, "step"):
        raise TypeError(f"`model` is {checks.shown(model)}, expected a model with `cache` and `step`, such as GPT.")
    if isinstance(model, Layer):
        check_params(params, model)
    _, like = tree.flatten(params)[0]
    xp = namespace_of(like)
    with use_backend(library_name(like)):
        cache = model.cache(tokens.shape[0], max_seq_len, dtype_name(like.dtype), starts=starts)
    cache = tree.map(lambda leaf: xp.asarray(leaf, device=device_of(like)) if checks.is_array(leaf) else leaf, cache)
    logits, cache = model.step(params, tokens, cache, last=True)  # (B, 1, V)
    logits = logits[:, -1, :]
    if page_size is None:
        return Prefill(logits, cache)
    if not hasattr(cache, "paged"):
        raise TypeError(f"`page_size` is given, but the cache of the model, a {type(cache).__name__}, has no pages.")
    shared = cache.paged(page_size)
    cache = shared.rows(xp.asarray(rows, device=device_of(like)))
    shared.free()
    return Prefill(xp.take(logits, xp.asarray(rows, device=device_of(logits)), axis=0), cache)


def _without_repetitions(tokens: Array, starts: Array | None) -> tuple[Array, Array | None, np.ndarray]:
    """The prompts that differ, where they start, and for each prompt which of these it is."""
    host = to_numpy(tokens)
    host = host if starts is None else np.concatenate([to_numpy(starts)[:, None], host], axis=1)
    _, first, rows = np.unique(host, axis=0, return_index=True, return_inverse=True)
    xp = namespace_of(tokens)
    chosen = xp.asarray(first, device=device_of(tokens))
    own = None if starts is None else xp.take(starts, chosen, axis=0)
    return xp.take(tokens, chosen, axis=0), own, rows.reshape(-1)


def left_pad(tokens: Array, lengths: Any, starts: Any = None) -> tuple[Array, Array | None]:
    """Convert right-padded prompts (B, T) to left-padded ones; return them and where each starts.

    The padding holds the first token of each prompt.
    """
    B, T = tokens.shape
    if starts is not None:
        if lengths is not None:
            raise ValueError("`starts` and `lengths` are both given, expected one: left or right padding.")
        begin = check_starts(starts, B, T - 1, tokens)
        assert begin is not None, "they are given"
        return _filled(tokens, begin, 0), begin
    if lengths is None:
        return tokens, None
    lengths = checks.same_device("lengths", checks.integers("lengths", lengths), "tokens", tokens)
    checks.shape("lengths", lengths, (B,), "the length of each of the B prompts")
    _check_lengths(lengths, T)
    first = T - lengths  # (B,)
    return _filled(tokens, first, first), first


def _filled(tokens: Array, starts: Array, shift: Any) -> Array:
    """Tokens (B, T) moved to the right by `shift`, whose first ones fill the places before `starts`."""
    xp = namespace_of(tokens)
    columns = xp.arange(tokens.shape[1], dtype=starts.dtype, device=device_of(tokens))
    first = starts - shift
    return xp.take_along_axis(tokens, xp.maximum(columns - _column(shift), _column(first)), axis=1)


def _column(x: Any) -> Any:
    return x if isinstance(x, int) else x[:, None]


def _check_lengths(lengths: Array, T: int) -> None:
    host = to_numpy(lengths)
    for n, length in enumerate(host.tolist()):
        if not 1 <= length <= T:
            raise ValueError(
                f"`lengths` holds {length} at position ({n},), expected 1 to {T}: a prompt has at least one token, "
                "and at most the number given."
            )

"""GPT with its parameters, prepared for reading and generating."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import accelerated
from attnarray.layers.cache import KVCache
from attnarray.layers.checking import Checked
from attnarray.layers.initial import Params
from attnarray.masks import Mask
from attnarray.models.gpt.cache import GPTCache
from attnarray.models.padding import check_tokens
from attnarray.models.prepared.stack import Prepared, Weights, make_stack, rounded

if TYPE_CHECKING:
    from attnarray.models.gpt.model import GPT


# Options of a GPT that kernels know, or that do not matter for inference.
SERVED = {
    "vocab_size", "max_seq_len", "dim", "num_layers", "num_heads", "hidden_dim", "dropout", "attention_dropout",
    "recompute", "positions", "rotary", "norm", "eps", "activation", "gated", "bias", "num_kv_heads", "tie_embeddings",
    "init_std", "mixers",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class PreparedGPT(Prepared):
    """A `GPT` with its parameters, from `GPT.prepare`: the same results with less work in each call.

    There is no backward. With kernels for NumPy arrays, a call without masks and padding and a step with a cache
    without left padding are one program; models with ALiBi or linear mixers run as they are.
    """

    model: GPT

    @property
    def positions(self) -> str:
        """How positions enter the model."""
        return self.model.positions

    @property
    def tables(self) -> tuple[Array, Array | None, None]:
        """The embeddings of tokens and, if they are learned, of positions."""
        position = self.params["position"]["weight"] if "position" in self.params else None
        return self.params["token"]["weight"], position, None

    @property
    def final_norm(self) -> Any:
        """The norm after the last block, for kernels."""
        return self.stack.norm_fields(self.params["norm"])

    @property
    def output_weight(self) -> Array:
        """The output weight (V, E)."""
        weight: Array = self.params["token" if self.model.tie_embeddings else "logits"]["weight"]
        return weight

    def __call__(
        self, tokens: Array, *, attn_mask: Array | Mask | None = None, lengths: Any = None, starts: Any = None
    ) -> Any:
        """Return the logits (B, T, V) of tokens (B, T), as the model does."""
        plain = attn_mask is lengths is starts is None and self.stack.dtype == "float32"
        plain = plain and self.stack.mixers == ("attention",) and self.is_served
        if not plain or 0 in check_tokens(tokens).shape:
            return self.model(self.params, tokens, attn_mask=attn_mask, lengths=lengths, starts=starts)
        checks.namespace(tokens=tokens, weight=self.output_weight)
        return self.step(tokens, self._cache_like(tokens))[0]

    @functools.cached_property
    def is_served(self) -> bool:
        """Whether kernels may know all options of the model: others have their defaults."""
        others = [field for field in dataclasses.fields(self.model) if field.name not in SERVED]
        plain = not isinstance(self.model.rotary, tuple) and self.model.norm in ("layer", "rms")
        return plain and all(getattr(self.model, field.name) == field.default for field in others)

    def cache(
        self, batch: int, max_seq_len: int | None = None, dtype: str = "float32", *, starts: Any = None
    ) -> GPTCache:
        """Return an empty cache: see `GPT.cache`."""
        return self.model.cache(batch, max_seq_len, dtype, starts=starts)

    def _cache_like(self, tokens: Array) -> GPTCache:
        """An empty cache for tokens (B, T), in the library of the parameters."""
        xp, like, (B, T) = namespace_of(self.output_weight), self.output_weight, tokens.shape
        shape = B, self.stack.num_kv_heads, T, self.stack.dim // self.stack.num_heads

        def room() -> Any:
            return xp.zeros(shape, dtype=like.dtype, device=device_of(like))

        return GPTCache(tuple(KVCache(room(), room(), 0) for _ in range(self.stack.num_layers)), None)

    def step(self, tokens: Array, cache: GPTCache, *, last: bool = False) -> tuple[Any, GPTCache]:
        """Return the logits (B, T, V) of the next tokens (B, T), or (B, 1, V) with `last`, and the cache after them.

        Keys and values are written *into the cache*: see `GPT.step`.
        """
        checks.context("cache", cache, GPTCache)
        checks.flag("last", last)
        if len(cache.blocks) != self.model.num_layers:
            raise ValueError(f"`cache` has {len(cache.blocks)} layers, but the model has {self.model.num_layers}.")
        tokens = check_tokens(tokens, self.model.vocab_size)
        if tokens.shape[0] != cache.batch:
            raise ValueError(f"`tokens` has {tokens.shape[0]} sequences, but `cache` has {cache.batch}.")
        self.model.embedding.check_length("`tokens`", cache.length + tokens.shape[1])
        if not self.is_served or cache.is_paged:
            return self.model.step(self.params, tokens, cache, last=last)
        logits, after = gpt_logits(tokens, self, cache, last)
        return logits, after


def prepare_gpt(model: GPT, params: Params, weights: Weights | None) -> PreparedGPT:
    """See `GPT.prepare`."""
    params, halves = rounded(params, weights, ("token" if model.tie_embeddings else "logits",))
    leaf = params["token"]["weight"]
    return PreparedGPT(model, params, make_stack(model.body, leaf, halves))


@accelerated
def gpt_logits(tokens: Array, prepared: PreparedGPT, cache: GPTCache, last: bool) -> tuple[Any, GPTCache]:
    """The logits (B, T, V) or (B, 1, V) of the next tokens, and the cache after them."""
    logits, after = prepared.model.step(Checked(prepared.params), tokens, cache, last=last)
    return logits, after

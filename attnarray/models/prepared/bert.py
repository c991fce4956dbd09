"""BERT with its parameters, prepared for inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnarray import checks
from attnarray.attention.sequences import narrow
from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import accelerated
from attnarray.layers.checking import Checked
from attnarray.layers.initial import Params
from attnarray.masks import Mask
from attnarray.models.padding import check_lengths, check_tokens
from attnarray.models.prepared.stack import Prepared, Weights, make_stack, rounded
from attnarray.ops.embedding import check_range

if TYPE_CHECKING:
    from attnarray.models.bert.model import BERT, BERTResult


@dataclass(frozen=True, eq=False)
class PreparedBERT(Prepared):
    """A `BERT` with its parameters, from `BERT.prepare`: the same results with less work in each call.

    There is no backward. With kernels for NumPy arrays, padded tokens are not computed; a call with a mask of pairs
    of tokens runs as that of the model.
    """

    model: BERT

    @property
    def tables(self) -> tuple[Array, Array, Array]:
        """The embeddings of tokens, positions and types."""
        token, position, kind = (self.params[name]["weight"] for name in ("token", "position", "type"))
        return token, position, kind

    @property
    def embedding_norm(self) -> Any:
        """The norm of the embedding, for kernels."""
        return self.params["embedding_norm"], self.model.dim, self.model.eps, True

    @property
    def final_norm(self) -> None:
        """There is none after the last block."""

    @property
    def pooler(self) -> Params | None:
        """The parameters of the pooler, if there is one."""
        return self.params.get("pooler")

    def __call__(
        self, tokens: Array, types: Array | None = None, *, attn_mask: Array | Mask | None = None, lengths: Any = None
    ) -> BERTResult:
        """Return states (B, T, dim) and pooled vectors (B, dim) as the model does; states of padding are 0.

        Tokens are padding beyond `lengths` (B,), or where a boolean `attn_mask` (B, 1, 1, T) is False.
        """
        tokens, types, lengths = self._checked(tokens, types, lengths)
        exists = None if attn_mask is None else _token_mask(attn_mask, tokens)
        if attn_mask is not None and (exists is None or lengths is not None):
            return self.model(self.params, tokens, types, attn_mask=attn_mask, lengths=lengths)
        compute = bert_states if self.model.is_plain else _states
        states, pooled = compute(tokens, self, types, exists, lengths)
        from attnarray.models.bert.model import BERTResult

        return BERTResult(states, pooled)

    def _checked(self, tokens: Array, types: Array | None, lengths: Any) -> tuple[Array, Array | None, Array | None]:
        model = self.model
        tokens = check_tokens(tokens, model.vocab_size)
        model.embedding.check_length(tokens)
        types = model.embedding.check_types(types, tokens)
        if types is not None:
            check_range("types", types, model.types or 0, "the types")
        return tokens, types, check_lengths("lengths", lengths, tokens)


def prepare_bert(model: BERT, params: Params, weights: Weights | None) -> PreparedBERT:
    """See `BERT.prepare`."""
    pooler = ("pooler",) if model.pooler else ()
    params, halves = rounded(params, weights, pooler)
    leaf = params["token"]["weight"]
    return PreparedBERT(model, params, make_stack(model.body, leaf, halves))


@accelerated
def bert_states(
    tokens: Array, prepared: PreparedBERT, types: Array | None, exists: Array | None, lengths: Array | None
) -> tuple[Any, Any]:
    """States (B, T, dim), 0 where no token `exists` (B, T) or beyond `lengths` (B,), and pooled vectors (B, dim)."""
    return _states(tokens, prepared, types, exists, lengths)


def _states(
    tokens: Array, prepared: PreparedBERT, types: Array | None, exists: Array | None, lengths: Array | None
) -> tuple[Any, Any]:
    """`bert_states` of any model, by the model itself."""
    mask = None if exists is None else exists[:, None, None, :]
    states, pooled = prepared.model(Checked(prepared.params), tokens, types, attn_mask=mask, lengths=lengths)
    xp = namespace_of(states)
    if lengths is not None:
        exists = xp.arange(tokens.shape[1], dtype=lengths.dtype, device=device_of(lengths)) < lengths[:, None]
    if exists is not None:
        states = xp.where(exists[:, :, None], states, xp.zeros_like(states))
    return narrow(states, states), pooled


def _token_mask(mask: Array | Mask, tokens: Array) -> Array | None:
    """A mask (B, 1, 1, T) as one of tokens (B, T); None for masks of pairs."""
    if isinstance(mask, Mask) or getattr(mask, "ndim", 0) != 4 or tuple(mask.shape[1:3]) != (1, 1):
        return None
    checks.boolean("attn_mask", mask)
    checks.namespace(tokens=tokens, attn_mask=mask)
    fits = tuple(mask.shape) == (tokens.shape[0], 1, 1, tokens.shape[1])
    return mask[:, 0, 0, :] if fits else None

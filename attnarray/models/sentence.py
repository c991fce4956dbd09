"""Sentence embeddings: one vector for each sequence, pooled from the states of an encoder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of
from attnarray.checkpoints.config import Unsupported
from attnarray.checkpoints.files import json_object, read_json
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, Shapes
from attnarray.models.bert import BERT, BERTResult
from attnarray.models.logits import check_gradient
from attnarray.models.padding import check_lengths
from attnarray.models.pretrained import from_pretrained
from attnarray.numpy_arrays import read_only
from attnarray.random import Philox

Pooling = Literal["mean", "cls", "max"]
MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


class SentenceContext(NamedTuple):
    """`weights` (B, T, 1 or dim) are those of the states in the pooled vectors."""

    encoder: Any
    weights: Array
    vectors: Array
    norms: Array | None


class SentenceGrads(NamedTuple):
    params: Params


@dataclass(frozen=True)
class SentenceEncoder(Layer):
    r"""One vector for each sequence.

    .. math:: v = \sum_t w_t x_t, \qquad \text{normalized:} \quad v / \lVert v \rVert

    with the states x of an encoder, and w = 1 / length of the tokens that exist (mean), 1 for the first (cls), or for
    each feature 1 where it is largest (max). The parameters are those of the encoder.

    Parameters
    ----------
    encoder : BERT
    pooling : {"mean", "cls", "max"}
    normalize : bool
        Whether vectors have length 1, so that dot products are cosines.

    Raises
    ------
    ValueError
        If an option is invalid, or a sequence has no tokens.

    References
    ----------
    Reimers and Gurevych, "Sentence-BERT: sentence embeddings using Siamese BERT-networks", 2019, arXiv:1908.10084.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> bert = aa.models.BERT(50, 16, dim=8, num_layers=2, num_heads=2, pooler=False, mask_head=False)
    >>> model = aa.models.SentenceEncoder(bert, "mean", normalize=True)
    >>> params, tokens = model.init(aa.Philox(0)), np.array([[4, 2, 7, 7], [3, 3, 0, 0]])
    >>> vectors, ctx = model.fwd(params, tokens, lengths=[4, 2])
    >>> vectors.shape, sorted(model.bwd(vectors, ctx).params)[:2]
    ((2, 8), ['blocks', 'embedding_norm'])
    """

    encoder: BERT
    pooling: Pooling = "mean"
    normalize: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.encoder, BERT):
            raise TypeError(f"`encoder` is {checks.shown(self.encoder)}, expected a BERT.")
        checks.choice("pooling", self.pooling, get_args(Pooling))

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, dtype: str | None = None, ignore: Sequence[str] = ()
    ) -> tuple[SentenceEncoder, Params]:
        """Load a folder of sentence-transformers: modules.json says how the vectors are made.

        Of its modules, an encoder, one pooling by mean, first token or maximum, and a normalization are read; others
        are errors. Arguments as in `BERT.from_pretrained`.
        """
        listed = Path(folder, "modules.json")
        if not listed.is_file():
            raise FileNotFoundError(f"There is no file `{listed}`. Make a SentenceEncoder of the BERT of the folder.")
        modules = json_object(b'{"modules": ' + listed.read_bytes() + b"}", listed)["modules"]
        kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise Unsupported(
                f"`{listed}` has the modules {', '.join(kinds)}, but only Transformer, Pooling and "
                "then Normalize are read."
            )
        path = Path(folder, modules[1].get("path", ""), "config.json")
        config = read_json(path)
        chosen = [mode for mode in config if mode.startswith("pooling_mode") and config[mode] is True]
        if len(chosen) != 1 or chosen[0] not in MODES:
            asked = ", ".join(chosen) or "no pooling"
            raise Unsupported(f"`{path}` asks for {asked}, but one of {', '.join(MODES)} is read.")
        encoder, params = from_pretrained(Path(folder, modules[0].get("path", "")), dtype=dtype, ignore=ignore)
        return cls(encoder, MODES[chosen[0]], len(kinds) == 3), params

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters of the encoder."""
        return self.encoder.init(rng, dtype)

    def shapes(self) -> Shapes:
        return self.encoder.shapes()

    @property
    def dropout(self) -> float:
        """That of the encoder."""
        return self.encoder.dropout

    @property
    def drops(self) -> bool:
        """Whether training needs an `rng`."""
        return self.encoder.drops

    def __call__(self, params: Params, tokens: Array, *, lengths: Any = None, rng: Philox | None = None) -> Any:
        """Return the vectors (B, dim) of tokens (B, T), right-padded with `lengths` (B,)."""
        states = self.encoder(params, tokens, lengths=lengths, rng=rng).states
        return self._pool(states, tokens, lengths)[0]

    def fwd(
        self, params: Params, tokens: Array, *, lengths: Any = None, rng: Philox | None = None
    ) -> tuple[Any, SentenceContext]:
        """Return the same, and the context for `bwd`; dropout requires an `rng`."""
        result, ctx = self.encoder.fwd(params, tokens, lengths=lengths, rng=rng)
        vectors, weights, norms = self._pool(result.states, tokens, lengths)
        return read_only(vectors), SentenceContext(ctx, weights, vectors, norms)

    def bwd(self, dout: Array, ctx: SentenceContext) -> SentenceGrads:
        r"""Return the gradients of the parameters.

        .. math:: dx_t = w_t\, dv, \qquad \text{normalized:} \quad dv = (dy - y\, (y \cdot dy)) / \lVert v \rVert
        """
        checks.context("ctx", ctx, SentenceContext)
        check_gradient("dout", dout, tuple(ctx.vectors.shape), ctx.vectors)
        xp, y = namespace_of(dout), ctx.vectors
        if ctx.norms is not None:
            dout = (dout - y * xp.sum(y * dout, axis=-1, keepdims=True)) / ctx.norms
        dstates = ctx.weights * dout[:, None, :]  # (B, T, dim)
        return SentenceGrads(self.encoder.bwd(BERTResult(dstates, None), ctx.encoder).params)

    def _pool(self, states: Array, tokens: Array, lengths: Any) -> tuple[Array, Array, Array | None]:
        """The vectors, the weights of the states in the pooled ones, and the norms of these."""
        xp, (B, T), device = namespace_of(states), tokens.shape, device_of(states)
        lengths = check_lengths("lengths", lengths, tokens)
        places = xp.arange(T, device=device)[None, :]
        exists = xp.broadcast_to(places < (T if lengths is None else lengths[:, None]), (B, T))[:, :, None]
        if not bool(xp.all(exists[:, :1, :])) or T == 0:
            raise ValueError("`lengths` holds 0, expected sequences of at least one token.")
        one = xp.astype(exists, states.dtype)
        if self.pooling == "mean":
            weights = one / xp.sum(one, axis=1, keepdims=True)
        elif self.pooling == "cls":
            weights = xp.broadcast_to(xp.astype(places == 0, states.dtype)[:, :, None], (B, T, 1))
        else:
            largest = xp.argmax(xp.where(exists, states, -float("inf")), axis=1)  # (B, dim)
            weights = xp.astype(places[:, :, None] == largest[:, None, :], states.dtype)
        vectors = xp.sum(weights * xp.where(exists, states, xp.zeros_like(states)), axis=1)
        if not self.normalize:
            return vectors, weights, None
        norms = xp.sqrt(xp.sum(vectors * vectors, axis=-1, keepdims=True))
        norms = xp.maximum(norms, xp.full_like(norms, 1e-12))
        return vectors / norms, weights, norms

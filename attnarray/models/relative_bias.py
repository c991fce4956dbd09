"""A learned bias of attention scores for each head and bucket of distances, as in T5 and MPNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array, device_of, library_name, namespace_of, use_backend
from attnarray.layers.embedding import Embedding, EmbeddingLayerGrads
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, Shapes
from attnarray.ops.embedding import EmbeddingContext
from attnarray.ops.positions import relative_buckets
from attnarray.random import Philox


class RelativeBiasContext(NamedTuple):
    table: EmbeddingContext


@dataclass(frozen=True)
class RelativeBias(Layer):
    r"""A learned bias for each head and bucket of distances.

    .. math:: b^h_{ij} = W_{\mathrm{bucket}(i - j),\, h}

    Give it to attention as `bias`, and the gradient of that bias to `bwd`. `relative_buckets` has the buckets.

    Parameters
    ----------
    num_heads : int
        H.
    buckets, max_distance, bidirectional
        See `relative_buckets`.
    init_std : float
        Standard deviation of the initial weights.

    Raises
    ------
    ValueError
        If a size or option is invalid.

    References
    ----------
    Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2019,
    arXiv:1910.10683, section 2.1.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> from attnarray.models.relative_bias import RelativeBias
    >>> layer = RelativeBias(num_heads=2, buckets=8, max_distance=16)
    >>> params = layer.init(aa.Philox(0))
    >>> bias, ctx = layer.fwd(params, 5, 7)
    >>> bias.shape, layer.bwd(bias, ctx).params["weight"].shape
    ((2, 5, 7), (8, 2))
    """

    num_heads: int
    buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        relative_buckets(1, 1, **self._options())  # validates its options

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """weight (buckets, H)."""
        return self._table.init(rng, dtype)

    def shapes(self) -> Shapes:
        return self._table.shapes()

    def __call__(self, params: Params, queries: int, keys: int, *, q_offset: int = 0) -> Any:
        """Return the bias (H, T, S) of T queries and S keys; query i has position i + q_offset."""
        return self.fwd(params, queries, keys, q_offset=q_offset)[0]

    def fwd(self, params: Params, queries: int, keys: int, *, q_offset: int = 0) -> tuple[Any, RelativeBiasContext]:
        """Return the same, and the context for `bwd`."""
        weight = params["weight"]
        xp = namespace_of(weight)
        with use_backend(library_name(weight)):
            found = relative_buckets(queries, keys, q_offset=q_offset, **self._options())  # (T, S)
        rows, table_ctx = self._table.fwd(params, xp.asarray(found, device=device_of(weight)))  # (T, S, H)
        return xp.permute_dims(rows, (2, 0, 1)), RelativeBiasContext(table_ctx)

    def bwd(self, dbias: Array, ctx: RelativeBiasContext) -> EmbeddingLayerGrads:
        r"""Return the gradient of the parameters.

        .. math:: dW_{n, h} = \sum_{i, j:\, \mathrm{bucket}(i - j) = n} db^h_{ij}
        """
        checks.context("ctx", ctx, RelativeBiasContext)
        return self._table.bwd(namespace_of(dbias).permute_dims(dbias, (1, 2, 0)), ctx.table)

    @property
    def _table(self) -> Embedding:
        return Embedding(self.buckets, self.num_heads, self.init_std)

    def _options(self) -> dict[str, Any]:
        return {"buckets": self.buckets, "max_distance": self.max_distance, "bidirectional": self.bidirectional}

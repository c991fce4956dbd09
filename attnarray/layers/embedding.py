"""An embedding with its table: vectors of token ids, and of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

from attnarray.backend import Array, ArrayT
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, Shapes
from attnarray.ops.embedding import EmbeddingContext, embedding, embedding_bwd, embedding_fwd
from attnarray.random import Philox


class EmbeddingLayerGrads(NamedTuple, Generic[ArrayT]):
    params: Params


@dataclass(frozen=True)
class Embedding(Layer):
    r"""A learned vector for each of V tokens.

    .. math:: y_n = W_{i_n}

    Where its weight is also that of the logits (tied embeddings), add both gradients with `tree.add`.

    Parameters
    ----------
    vocab_size : int
        V.
    dim : int
        Features of a vector.
    init_std : float
        Standard deviation of the initial vectors.

    Raises
    ------
    ValueError
        If a size is not a positive integer, or `init_std` is negative.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.Embedding(vocab_size=10, dim=4)
    >>> params = layer.init(aa.Philox(0))
    >>> y, ctx = layer.fwd(params, np.array([[1, 2, 1]]))
    >>> y.shape, layer.bwd(y, ctx).params["weight"].shape
    ((1, 3, 4), (10, 4))
    """

    vocab_size: int
    dim: int
    init_std: float = 1.0

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """weight (vocabulary, dim)."""
        return {"weight": rng.normal((self.vocab_size, self.dim), self.init_std, dtype)}

    def shapes(self) -> Shapes:
        return {"weight": (self.vocab_size, self.dim)}

    def __call__(self, params: Params, indices: Array) -> Any:
        """Vectors (..., dim) of integers (...) from 0 to V - 1."""
        return embedding(indices, **params)

    def fwd(self, params: Params, indices: Array) -> tuple[Any, EmbeddingContext]:
        """The same, and the context for `bwd`."""
        return embedding_fwd(indices, **params)

    def bwd(self, dout: Array, ctx: EmbeddingContext) -> EmbeddingLayerGrads:
        """The gradient of the weight; indices have none."""
        return EmbeddingLayerGrads(check_gradients(self, {"weight": embedding_bwd(dout, ctx).weight}))

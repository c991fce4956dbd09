"""The mechanisms that the demo can train: which model each of them works in, and how many dates it needs.

- `translator`: self-attention over the characters, then ten learned queries; multi-head attention at both places.
- `EncoderDecoder`: recurrent networks read and write, the mechanism looks from the one to the other.
- `SelfAttention`: the mechanism alone, in two blocks over characters and places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray.attention.dot_product import scaled_dot_product_attention_bwd, scaled_dot_product_attention_fwd
from attnarray.attention.location import LocationResult
from attnarray.backend import Array
from attnarray.demo import translator
from attnarray.demo.encoder_decoder import Attention, EncoderDecoder
from attnarray.demo.model import Model
from attnarray.demo.self_attention import SelfAttention
from attnarray.layers.bahdanau import BahdanauAttention
from attnarray.layers.convolutional import ConvolutionalAttention
from attnarray.layers.initial import Params
from attnarray.layers.location import LocationAttention
from attnarray.layers.luong import LuongAttention
from attnarray.layers.pairwise import PairwiseAttention
from attnarray.layers.recurrent import RecurrentAttention
from attnarray.layers.scaled import ScaledAttention
from attnarray.random import Philox

WIDTH = 64  # of all states
RECURRENT, BLOCKS = "Recurrent encoder and decoder", "Two blocks of self-attention"
FEW, MANY = 10_000, 30_000  # training dates: without recurrence or convolution, order is harder to learn


class Mechanism(NamedTuple):
    """A model with the mechanism in it, what kind of model that is, and the training dates of its recipe."""

    model: Model
    kind: str
    dates: int


@dataclass(frozen=True)
class Across:
    """A layer of the library between decoder and encoder."""

    layer: Any

    def init(self, rng: Philox) -> Params:
        params: Params = self.layer.init(rng)
        return params

    def fwd(
        self, params: Params, query: Array, key: Array, lengths: Array, before: Array | None = None
    ) -> tuple[Array, Any]:
        out, ctx = self.layer.fwd(params, query, key, kv_lengths=lengths)
        return out, ctx

    def bwd(self, dout: Array, ctx: Any) -> tuple[Array, Array, Params]:
        grads = self.layer.bwd(dout, ctx)
        return grads.query, grads.key, grads.params


class AcrossByLocation(Across):
    """The layer that also sees the weights of the step before: the ten steps are one run, or go one by one."""

    def fwd(
        self, params: Params, query: Array, key: Array, lengths: Array, before: Array | None = None
    ) -> tuple[Array, Any]:
        result, ctx = self.layer.fwd(params, query, key, previous=before, kv_lengths=lengths)
        return result.out, ctx

    def bwd(self, dout: Array, ctx: Any) -> tuple[Array, Array, Params]:
        return super().bwd(LocationResult(dout, None), ctx)


class DotProduct:
    """The function alone, which has no parameters: one head, and the keys are the values."""

    def init(self, rng: Philox) -> Params:
        return {}

    def fwd(
        self, params: Params, query: Array, key: Array, lengths: Array, before: Array | None = None
    ) -> tuple[Array, Any]:
        return scaled_dot_product_attention_fwd(query, key, key, kv_lengths=lengths)

    def bwd(self, dout: Array, ctx: Any) -> tuple[Array, Array, Params]:
        grads = scaled_dot_product_attention_bwd(dout, ctx)
        return grads.query, grads.key + grads.value, {}


def _recurrent(attention: Attention) -> Mechanism:
    return Mechanism(EncoderDecoder(attention, WIDTH), RECURRENT, FEW)


MECHANISMS = {
    "multi-head": Mechanism(translator, "Ten queries over self-attention", MANY),
    "dot-product": _recurrent(DotProduct()),
    "scaled": _recurrent(Across(ScaledAttention(WIDTH))),
    "luong-dot": _recurrent(Across(LuongAttention(WIDTH, WIDTH, "dot"))),
    "luong-general": _recurrent(Across(LuongAttention(WIDTH, WIDTH, "general"))),
    "luong-concat": _recurrent(Across(LuongAttention(WIDTH, WIDTH, "concat"))),
    "additive": _recurrent(Across(BahdanauAttention(WIDTH, WIDTH, hidden_dim=WIDTH))),
    "location": _recurrent(AcrossByLocation(LocationAttention(WIDTH, WIDTH, hidden_dim=WIDTH, filters=8, width=5))),
    "pairwise": Mechanism(SelfAttention(PairwiseAttention(WIDTH, hidden_dim=WIDTH), WIDTH), BLOCKS, MANY),
    "convolutional": Mechanism(
        SelfAttention(ConvolutionalAttention(WIDTH, hidden_dim=32, width=5), WIDTH), BLOCKS, FEW
    ),
    "recurrent": _recurrent(Across(RecurrentAttention(WIDTH, WIDTH, state_dim=16, hidden_dim=16))),
}

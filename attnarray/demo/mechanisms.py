"""The mechanisms that the demo can train: which model each of them works in, and how many dates it needs.

- `translator`: self-attention over the characters, then ten learned queries; multi-head attention in both.
- `EncoderDecoder`: a recurrent encoder and decoder, with the mechanism between them.
- `SelfAttention`: the mechanism alone, in two blocks over characters and output slots; without positional embeddings,
  if the
  mechanism encodes positions.
"""

from __future__ import annotations

from typing import NamedTuple

from attnarray.attention.dot_product.scaled_dot_product import (
    scaled_dot_product_attention_bwd,
    scaled_dot_product_attention_fwd,
)
from attnarray.attention.selection.sparse import sparsemax_attention_bwd, sparsemax_attention_fwd
from attnarray.demo import translator
from attnarray.demo.attentions import (
    Across,
    AcrossByLocation,
    AcrossFunction,
    AcrossHard,
    Within,
    WithinRotary,
    WithinValues,
)
from attnarray.demo.encoder_decoder import Attention, EncoderDecoder
from attnarray.demo.linear import WithinLinear
from attnarray.demo.model import Model
from attnarray.demo.self_attention import SelfAttention
from attnarray.layers.bahdanau import BahdanauAttention
from attnarray.layers.convolutional import ConvolutionalAttention
from attnarray.layers.hard import HardAttention
from attnarray.layers.linear_attention import LinearAttention
from attnarray.layers.local import LocalAttention
from attnarray.layers.location import LocationAttention
from attnarray.layers.luong import LuongAttention
from attnarray.layers.pairwise import PairwiseAttention
from attnarray.layers.recurrent import RecurrentAttention
from attnarray.layers.relative import RelativeAttention
from attnarray.layers.scaled import ScaledAttention

WIDTH = 64  # of all states
HEADS = 4
RECURRENT, BLOCKS = "Recurrent encoder and decoder", "Two blocks of self-attention"
FEW, MANY = 10_000, 30_000  # training dates: without recurrence or convolution, order is harder to learn


class Mechanism(NamedTuple):
    """A model with the mechanism in it, what kind of model that is, and the training dates of its recipe."""

    model: Model
    kind: str
    dates: int


def _recurrent(attention: Attention, *, informed: bool = False) -> Mechanism:
    return Mechanism(EncoderDecoder(attention, WIDTH, informed), RECURRENT, FEW)


def _blocks(
    attention: Within | WithinLinear | WithinRotary | WithinValues, dates: int, *, positions: bool = True
) -> Mechanism:
    return Mechanism(SelfAttention(attention, WIDTH, positions=positions), BLOCKS, dates)


MECHANISMS = {
    "multi-head": Mechanism(translator, "Ten queries over self-attention", MANY),
    "dot-product": _recurrent(AcrossFunction(scaled_dot_product_attention_fwd, scaled_dot_product_attention_bwd)),
    "scaled": _recurrent(Across(ScaledAttention(WIDTH))),
    "luong-dot": _recurrent(Across(LuongAttention(WIDTH, WIDTH, "dot"))),
    "luong-general": _recurrent(Across(LuongAttention(WIDTH, WIDTH, "general"))),
    "luong-concat": _recurrent(Across(LuongAttention(WIDTH, WIDTH, "concat"))),
    "additive": _recurrent(Across(BahdanauAttention(WIDTH, WIDTH, hidden_dim=WIDTH))),
    "location": _recurrent(AcrossByLocation(LocationAttention(WIDTH, WIDTH, hidden_dim=WIDTH, filters=8, width=5))),
    "pairwise": _blocks(WithinValues(PairwiseAttention(WIDTH, hidden_dim=WIDTH), WIDTH), MANY),
    "convolutional": _blocks(WithinValues(ConvolutionalAttention(WIDTH, hidden_dim=32, width=5), WIDTH), FEW),
    "recurrent": _recurrent(Across(RecurrentAttention(WIDTH, WIDTH, state_dim=16, hidden_dim=16))),
    "hard": _recurrent(AcrossHard(HardAttention(WIDTH, WIDTH, WIDTH, "straight_through"))),
    "sparsemax": _recurrent(AcrossFunction(sparsemax_attention_fwd, sparsemax_attention_bwd)),
    "local": _recurrent(Across(LocalAttention(WIDTH, WIDTH, window=10)), informed=True),
    "relative": _blocks(Within(RelativeAttention(WIDTH, HEADS)), MANY, positions=False),
    "rotary": _blocks(WithinRotary(WIDTH, HEADS), MANY, positions=False),
    "linear": _blocks(WithinLinear(LinearAttention(WIDTH, HEADS, feature_map="elu+1", normalize=True)), MANY),
    "gated-delta": _blocks(WithinLinear(LinearAttention.gated_delta_net(WIDTH, HEADS)), MANY),
}

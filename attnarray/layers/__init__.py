"""Layers: frozen configurations with `init`, `__call__`, `fwd` and `bwd` on trees of parameters."""

from attnarray.layers.bahdanau import BahdanauAttention
from attnarray.layers.convolutional import ConvolutionalAttention
from attnarray.layers.location import LocationAttention
from attnarray.layers.luong import LuongAttention
from attnarray.layers.multi_head import MultiHeadAttention
from attnarray.layers.pairwise import PairwiseAttention
from attnarray.layers.recurrent import RecurrentAttention
from attnarray.layers.scaled import ScaledAttention

__all__ = [
    "BahdanauAttention",
    "ConvolutionalAttention",
    "LocationAttention",
    "LuongAttention",
    "MultiHeadAttention",
    "PairwiseAttention",
    "RecurrentAttention",
    "ScaledAttention",
]

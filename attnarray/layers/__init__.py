"""Layers: frozen configurations with `init`, `__call__`, `fwd` and `bwd` on trees of parameters."""

from attnarray.layers.bahdanau import BahdanauAttention
from attnarray.layers.block import TransformerBlock
from attnarray.layers.cache import KVCache, LinearCache
from attnarray.layers.checking import check_params
from attnarray.layers.convolutional import ConvolutionalAttention
from attnarray.layers.differential import DifferentialAttention
from attnarray.layers.embedding import Embedding
from attnarray.layers.feed_forward import FeedForward
from attnarray.layers.graph import GraphAttention
from attnarray.layers.hard import HardAttention
from attnarray.layers.latent import LatentAttention, LatentCache
from attnarray.layers.linear import Linear
from attnarray.layers.linear_attention import LinearAttention
from attnarray.layers.local import LocalAttention
from attnarray.layers.location import LocationAttention
from attnarray.layers.lora import LoRA
from attnarray.layers.luong import LuongAttention
from attnarray.layers.mixture_of_experts import MixtureOfExperts
from attnarray.layers.multi_head import MultiHeadAttention
from attnarray.layers.norm import LayerNorm, RMSNorm
from attnarray.layers.paged_cache import PagedCache
from attnarray.layers.pairwise import PairwiseAttention
from attnarray.layers.recurrent import RecurrentAttention
from attnarray.layers.relative import RelativeAttention
from attnarray.layers.scaled import ScaledAttention
from attnarray.layers.window import WindowAttention, WindowBlock
from attnarray.tree import shorten_reprs

__all__ = [
    "BahdanauAttention",
    "ConvolutionalAttention",
    "DifferentialAttention",
    "Embedding",
    "FeedForward",
    "GraphAttention",
    "HardAttention",
    "KVCache",
    "LatentAttention",
    "LatentCache",
    "LayerNorm",
    "Linear",
    "LinearAttention",
    "LinearCache",
    "LoRA",
    "LocalAttention",
    "LocationAttention",
    "LuongAttention",
    "MixtureOfExperts",
    "MultiHeadAttention",
    "PagedCache",
    "PairwiseAttention",
    "RMSNorm",
    "RecurrentAttention",
    "RelativeAttention",
    "ScaledAttention",
    "TransformerBlock",
    "WindowAttention",
    "WindowBlock",
    "check_params",
]

shorten_reprs()


def __dir__() -> list[str]:
    return __all__

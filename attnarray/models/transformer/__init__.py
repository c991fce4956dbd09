"""The Transformer, its encoder and its decoder."""

from attnarray.models.transformer.decoder import Decoder
from attnarray.models.transformer.encoder import Encoder
from attnarray.models.transformer.model import Transformer

__all__ = ["Decoder", "Encoder", "Transformer"]

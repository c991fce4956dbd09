"""Transformer-XL: segments that see a memory of those before them."""

from attnarray.models.transformer_xl.model import TransformerXL, TransformerXLResult, remembered

__all__ = ["TransformerXL", "TransformerXLResult", "remembered"]

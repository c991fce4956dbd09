"""Transformer-XL: segments that attend to a memory of those before."""

from attnarray.models.transformer_xl.model import TransformerXL, TransformerXLResult, remembered

__all__ = ["TransformerXL", "TransformerXLResult", "remembered"]

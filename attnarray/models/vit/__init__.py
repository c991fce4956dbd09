"""Vision Transformers."""

from attnarray.models.vit.model import ViT, ViTResult

__all__ = ["ViT", "ViTResult"]

"""Attention on images and volumes, whose axes of positions stay apart: (B, *size, heads, D)."""

"""Sums and softmax over edges and segments."""

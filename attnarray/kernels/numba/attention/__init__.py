"""Attention by query and key blocks, decoding, windows, additive scores, and masked softmax of given scores."""

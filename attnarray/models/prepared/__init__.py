"""Prepared models: parameters checked once and packed, for inference with little overhead in each call."""

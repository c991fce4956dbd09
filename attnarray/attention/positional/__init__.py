"""Scores and windows that depend on where a key stands."""

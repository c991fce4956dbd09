"""Scores and windows that depend on the position of a key."""

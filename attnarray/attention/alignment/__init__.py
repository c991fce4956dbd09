"""Scores that a small network computes: additive, of the place last looked at, recurrent."""

"""Scores that a small network computes: additive, location-aware, recurrent."""

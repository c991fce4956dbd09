"""Scores that are dot products, of one head or many, of all keys or a part; what other mechanisms build on."""

"""Attention mechanisms as triples `f, f_fwd, f_bwd` with explicit parameters, one mechanism per file."""

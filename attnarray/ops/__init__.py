"""Primitives as triples `f, f_fwd, f_bwd` in plain array code, the reference for kernels."""

"""SIMD vectors in compiled code, loops over them, and register-tiled matrix products."""

"""Vectors in compiled code, loops over them, and products of matrices in registers."""

"""Approximations of softmax attention whose time grows less than with the square of the length."""

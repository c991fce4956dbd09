"""Kernels of attention on images and volumes."""

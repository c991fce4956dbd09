"""CUDA kernels on a CPU: their sources compiled by a C++ compiler, and a CuPy that launches them there."""

"""Compile the kernels of attnarray ahead, for the wheels of a platform; needs Numba and a C compiler."""

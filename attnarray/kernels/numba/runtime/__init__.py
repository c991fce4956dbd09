"""The runtime of kernels: compilation, its cache, threads, and arrays as addresses."""

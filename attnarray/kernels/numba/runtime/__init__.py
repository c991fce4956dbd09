"""What every kernel needs around it: compilation, its cache, threads, and arrays as addresses."""

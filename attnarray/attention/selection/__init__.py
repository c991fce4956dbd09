"""Few keys instead of all: one, the k best, or those whose weights do not come out as 0."""

"""`attnarray bench`: cases, peers that compute the same, a runner that measures them side by side, and reports."""

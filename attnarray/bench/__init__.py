"""`attnarray bench`: cases, peers that compute the same, a runner that measures them interleaved, and reports."""

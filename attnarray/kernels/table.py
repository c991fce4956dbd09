"""The map of kernels: reference function -> backend -> "module:kernel". Read by `attnarray.dispatch` alone.

A key is "module:function" below `attnarray`; a kernel is "module:function" below `attnarray.kernels.<backend>`.
A kernel has the signature of its reference. To add one, write it and add its row: dispatch, `attnarray info`,
`attnarray check` and the tests in tests/test_kernels.py pick it up from here.
"""

KERNELS: dict[str, dict[str, str]] = {
    "attention.core:attend": {"numba": "attention:attend"},
    "attention.core:attend_backward": {"numba": "attention:attend_backward"},
    "attention.scoring:weights_from_dots": {"numba": "masked_softmax:weights_from_dots"},
    "attention.scoring:gradients_of_dots": {"numba": "masked_softmax:gradients_of_dots"},
}

# Which kernel backend serves the arrays of which library, and what that backend needs.
BACKEND_OF_LIBRARY = {"numpy": "numba", "cupy": "cuda"}

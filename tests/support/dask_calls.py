"""Calls of attention on Dask arrays, beside the same calls on whole arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.ring_calls import ROWS, Call

CHUNKS = {"query": (1, 2, 5, -1), "key": (1, 1, 4, -1), "value": (1, 1, 4, -1)}


def dask_arrays(call: Call, chunks: dict[str, Any] = CHUNKS) -> dict[str, Any]:
    """The arrays of a call as Dask arrays; those over scores in chunks of 3, whatever the others have."""
    import dask.array as da

    def made(name: str, x: np.ndarray) -> Any:
        return x if name == "sinks" else da.from_array(x, chunks=3 if name in ROWS else chunks[name])

    return {name: made(name, x) for name, x in call.arrays.items()}


def blocked_results(call: Call, chunks: dict[str, Any] = CHUNKS, compute: Any = None) -> dict[str, Any]:
    """Output, lse and gradients of blocks."""
    import dask
    import dask.array as da

    from attnarray.distributed import dask as blocked

    out, ctx = blocked.scaled_dot_product_attention_fwd(**dask_arrays(call, chunks), **call.options)
    dout, dlse = da.from_array(call.dout, chunks=4), da.from_array(call.dlse, chunks=6)
    grads = blocked.scaled_dot_product_attention_bwd(dout, ctx, dlse)
    lazy = {"out": out, "lse": ctx.lse, **grads._asdict()}
    given = {name: value for name, value in lazy.items() if value is not None}
    computed = (compute or dask.compute)(given)
    found: dict[str, Any] = {**lazy, **(computed[0] if isinstance(computed, tuple) else computed)}
    bias = call.arrays.get("bias")
    if bias is not None:
        found["bias"] = found["bias"].reshape(bias.shape)
    return found

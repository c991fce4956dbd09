"""What `benchmarks.distributed kills` computes, and the plugin that kills workers."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
from distributed.diagnostics.plugin import SchedulerPlugin


class Killer(SchedulerPlugin):
    """Kills a worker when so many tasks have been computed."""

    name = "killer"

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.left = -1

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if (start, finish) == ("processing", "memory"):
            self.left -= 1
            if self.left == 0:
                os.kill(self.pids.pop(), signal.SIGKILL)


def results(client: Any) -> list[np.ndarray]:
    """Output and gradients of causal attention with dropout, in 4 x 4 blocks for each of two heads."""
    import dask.array as da

    from attnarray.distributed import dask as blocked

    x = np.random.default_rng(0).standard_normal((4, 1, 2, 256, 16), dtype=np.float32)
    q, k, v, dout = (da.from_array(array, chunks=(1, 1, 64, 16)) for array in x)
    out, ctx = blocked.scaled_dot_product_attention_fwd(q, k, v, None, 0.2, rng=3)
    grads = blocked.scaled_dot_product_attention_bwd(dout, ctx)
    return list(client.compute([out, *grads[:3]], sync=True))

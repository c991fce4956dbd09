"""Attention and training on several processes: over mpi4py communicators, or over threads for tests and teaching.

Importing it loads no further package: an mpi4py communicator is an argument.
"""

from attnarray.distributed.all_to_all import (
    AllToAllContext,
    all_to_all_attention,
    all_to_all_attention_bwd,
    all_to_all_attention_fwd,
)
from attnarray.distributed.checkpoint import load_sharded, save_sharded
from attnarray.distributed.communicator import RankError
from attnarray.distributed.context_parallel import ContextParallel
from attnarray.distributed.grid import Grid, grid
from attnarray.distributed.linear import (
    ScanContext,
    scan_linear_attention,
    scan_linear_attention_bwd,
    scan_linear_attention_fwd,
)
from attnarray.distributed.ring import RingContext, ring_attention, ring_attention_bwd, ring_attention_fwd
from attnarray.distributed.sequence import join_sequence, split_sequence
from attnarray.distributed.thread_comm import ThreadComm
from attnarray.distributed.training import sharded_init, sharded_update
from attnarray.tree import shorten_reprs

__all__ = [
    "AllToAllContext",
    "ContextParallel",
    "Grid",
    "RankError",
    "RingContext",
    "ScanContext",
    "ThreadComm",
    "all_to_all_attention",
    "all_to_all_attention_bwd",
    "all_to_all_attention_fwd",
    "grid",
    "join_sequence",
    "load_sharded",
    "ring_attention",
    "ring_attention_bwd",
    "ring_attention_fwd",
    "save_sharded",
    "scan_linear_attention",
    "scan_linear_attention_bwd",
    "scan_linear_attention_fwd",
    "sharded_init",
    "sharded_update",
    "split_sequence",
]

shorten_reprs()


def __dir__() -> list[str]:
    return __all__

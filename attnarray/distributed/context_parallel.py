"""Layers and models whose sequence is divided among ranks: context parallelism."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import SDPAGrads
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.distributed.all_to_all import all_to_all_attention_bwd, all_to_all_attention_fwd
from attnarray.distributed.communicator import check_comm, gathered
from attnarray.distributed.ring import ring_attention_bwd, ring_attention_fwd
from attnarray.distributed.sequence import ORDERS, OrderName, sequence_parts, split_sequence
from attnarray.random import Philox, as_seed

Method = Literal["ring", "all_to_all"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class ContextParallel:
    """Divides the sequence of a layer or model among ranks, as its option `context_parallel`.

    Each rank has the same parameters and a part of the positions, of which it computes everything but attention alone;
    keys and values come from all ranks. The gradients of the parameters are those of this rank's positions: add those
    of all ranks, as `sharded_update` does.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, the communicator that `ThreadComm` gives, or Grid
        All its ranks make the same calls. A `Grid` is for "all_to_all".
    order : {"zigzag", "contiguous"}
        Which positions a rank has: see `split_sequence`. "zigzag" gives every rank as much work under a causal mask.
    method : {"ring", "all_to_all"}
        `ring_attention`, or `all_to_all_attention`, which needs a query head for each rank.

    Raises
    ------
    ValueError
        If an option is unknown.

    Notes
    -----
    Positions, lengths and windows are those of the whole sequence, as in `ring_attention`, and dropout of attention
    weights is that of one process if every rank gives the same `rng`. Dropout of embeddings and of branches is
    independent on each rank.

    References
    ----------
    The Llama team, "The Llama 3 herd of models", 2024, arXiv:2407.21783, section 3.3.2, trains so.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> from attnarray.distributed import ContextParallel, ThreadComm, join_sequence
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> params, tokens = model.init(aa.Philox(0)), np.arange(24).reshape(2, 12)
    >>> def on_rank(comm):
    ...     parallel = ContextParallel(comm)
    ...     return model(params, parallel.split(tokens), context_parallel=parallel)
    >>> logits = join_sequence(ThreadComm(3).run(on_rank), order="zigzag", axis=1)
    >>> bool(np.allclose(logits, model(params, tokens), atol=1e-6))
    True
    """

    comm: Any
    order: OrderName = "zigzag"
    method: Method = "ring"

    def __post_init__(self) -> None:
        checks.choice("order", self.order, ORDERS)
        checks.choice("method", self.method, METHODS)
        check_comm(self.comm)

    def split(self, x: ArrayT, axis: int = 1) -> ArrayT:
        """This rank's part of a whole array along an axis of positions."""
        return split_sequence(x, self.comm.Get_size(), order=self.order, axis=axis)[self.comm.Get_rank()]

    def positions(self, length: Callable[[], int]) -> tuple[np.ndarray, int]:
        """The positions (T,) of this rank, which has `length()` of them, and the number of all; every rank calls it.

        If `length` raises an error on one rank, every rank raises.
        """
        lengths = gathered(self.comm, length, call="a layer with context_parallel")
        part = sequence_parts(lengths, self.order)[self.comm.Get_rank()]
        return np.concatenate([np.arange(*segment) for segment in part]), sum(lengths)

    def rng(self, rng: Philox | None) -> Philox | None:
        """A generator for what every rank draws for itself; that of the first rank is `rng`."""
        rank = self.comm.Get_rank()
        return rng if rng is None or not rank else rng.fold_in(rank)

    def fwd(
        self, arrays: tuple[Array, Array, Array], attn_mask: Any, dropout_p: float, is_causal: bool, options: Any
    ) -> tuple[Any, Any]:
        """Attention of this rank's queries, keys and values, and its context; dropout by the first rank's `rng`."""
        forward: Any = ring_attention_fwd if self.method == "ring" else all_to_all_attention_fwd
        if dropout_p and options.get("rng") is not None:
            options = {**options, "rng": gathered(self.comm, as_seed, options["rng"])[0]}
        return forward(self.comm, *arrays, attn_mask, dropout_p, is_causal, order=self.order, **options)

    def bwd(self, dout: Array, ctx: Any, dlse: Array | None = None) -> SDPAGrads[Any]:
        """The gradients of `fwd`: the first rank has all of those of the sinks, so that a sum over ranks is right."""
        backward: Any = ring_attention_bwd if self.method == "ring" else all_to_all_attention_bwd
        grads: SDPAGrads[Any] = backward(dout, ctx, dlse)
        if grads.sinks is None or not self.comm.Get_rank():
            return grads
        return grads._replace(sinks=namespace_of(grads.sinks).zeros_like(grads.sinks))

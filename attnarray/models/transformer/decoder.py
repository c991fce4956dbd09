"""The decoder of a Transformer: causal self-attention and cross-attention, for whole sequences or step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

from attnarray import checks
from attnarray.backend import Array
from attnarray.layers.block import BlockGrads, Options
from attnarray.layers.cache import DecoderCache
from attnarray.layers.initial import Params
from attnarray.masks import Mask
from attnarray.models.transformer.stack import Stack, StackContext
from attnarray.random import Philox


@dataclass(frozen=True)
class Decoder(Stack):
    r"""The decoder of a Transformer: blocks of self-attention, cross-attention to a memory, and feed-forward.

    Its self-attention is causal unless `is_causal=False`. The fields are those of `Encoder`.

    Raises
    ------
    ValueError
        If a size, probability or option is invalid; if `fwd` has dropout and no `rng`.

    Notes
    -----
    `torch.nn.TransformerDecoder` in these terms: `norm_first` is `pre_norm`, its `norm` is `final_norm`; its boolean
    masks are True where a key is *hidden*, and without a `tgt_mask` it is not causal.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> decoder = aa.models.Decoder(dim=8, num_layers=2, num_heads=2)
    >>> params = decoder.init(aa.Philox(0))
    >>> rng = np.random.default_rng(0)
    >>> x, memory = rng.standard_normal((2, 5, 8), np.float32), rng.standard_normal((2, 7, 8), np.float32)
    >>> y, ctx = decoder.fwd(params, x, memory, memory_lengths=[7, 4])
    >>> y.shape, decoder.bwd(y, ctx).memory.shape
    ((2, 5, 8), (2, 7, 8))

    Step by step, with the keys and values of the memory projected once:

    >>> cache = decoder.cache(params, memory, max_seq_len=5)
    >>> for t in range(5):
    ...     step, cache = decoder.step(params, x[:, t : t + 1], cache, memory_lengths=[7, 4])
    >>> bool(np.allclose(step, y[:, 4:], atol=1e-5))
    True
    """

    cross: ClassVar[bool] = True

    def __call__(
        self, params: Params, x: Array, memory: Array, *, rng: Philox | None = None, **options: Unpack[Options]
    ) -> Any:
        """Return y (*batch, T, dim) of x (*batch, T, dim) and a memory (*batch, S, dim).

        The options are those of `TransformerBlock` with `cross`, for each block; `is_causal` is True by default.
        Without an `rng` there is no dropout.
        """
        *_, y = self._states(params, x, memory, rng, _causal(options))
        return y

    def states(
        self, params: Params, x: Array, memory: Array, *, rng: Philox | None = None, **options: Unpack[Options]
    ) -> list[Any]:
        """Return the output of every block, (*batch, T, dim) each; the last one is y."""
        return list(self._states(params, x, memory, rng, _causal(options)))

    def fwd(
        self, params: Params, x: Array, memory: Array, *, rng: Philox | None = None, **options: Unpack[Options]
    ) -> tuple[Any, StackContext]:
        """Return y, and the context for `bwd`."""
        return self._fwd(params, x, memory, rng, _causal(options))

    def bwd(self, dout: Array, ctx: StackContext) -> BlockGrads:
        """Return the gradients of x, the memory, the parameters and the biases; None for what was not given."""
        return self._bwd(dout, ctx)

    def cache(self, params: Params, memory: Array, max_seq_len: int) -> tuple[DecoderCache, ...]:
        """Return the cache for `step`: for each block the projected keys and values of a memory (B, S, dim), and an
        empty self-attention cache for `max_seq_len` positions."""
        blocks = zip(self.blocks, params["blocks"], strict=True)
        return tuple(block.decoder_cache(own, memory, max_seq_len) for block, own in blocks)

    def step(
        self, params: Params, x: Array, cache: tuple[DecoderCache, ...], *, memory_mask: Array | Mask | None = None,
        memory_lengths: Any = None, bias: Array | None = None,
    ) -> tuple[Any, tuple[DecoderCache, ...]]:  # fmt: skip
        """Return y of the next positions x (B, T, dim), and the cache with them: y equals that of one call over all
        positions. A `bias` of the self-attention broadcasts to (B, H, T, length + T).
        """
        if not isinstance(cache, tuple) or len(cache) != self.num_layers:
            raise TypeError(
                f"`cache` is {checks.shown(cache)}, expected the cache that `cache` of this decoder returns."
            )
        after = []
        for n, known in enumerate(cache):
            own = params["blocks"][n]
            x, known = self.blocks[n].step(
                own, x, known, bias=bias, memory_mask=memory_mask, memory_lengths=memory_lengths
            )
            after.append(known)
        return self._parts["norm"](params["norm"], x) if "norm" in params else x, tuple(after)


def _causal(options: Options) -> Options:
    return {"is_causal": True, **options}

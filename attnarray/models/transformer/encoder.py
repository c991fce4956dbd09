"""The encoder of a Transformer: blocks of self-attention and feed-forward networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, Unpack

from attnarray.backend import Array
from attnarray.layers.initial import Params
from attnarray.masks import Mask
from attnarray.models.prepared.encoder import PreparedEncoder, prepare_encoder
from attnarray.models.prepared.stack import Weights
from attnarray.models.transformer.stack import Stack, StackContext
from attnarray.random import Philox


class EncoderOptions(TypedDict, total=False):
    """Options of the self-attention; `multi_head_attention` documents each."""

    attn_mask: Array | Mask | None
    is_causal: bool
    kv_lengths: Any
    bias: Array | None
    starts: Any
    context_parallel: Any


class EncoderGrads(NamedTuple):
    """`bias` is also the gradient of a floating `attn_mask`."""

    x: Any
    params: Params
    bias: Any


@dataclass(frozen=True)
class Encoder(Stack):
    r"""The encoder of a Transformer.

    .. math::
        x \leftarrow x + \mathrm{drop}(f(\mathrm{norm}(x))) \quad \text{(pre-norm)}, \qquad
        x \leftarrow \mathrm{norm}(x + \mathrm{drop}(f(x))) \quad \text{(post-norm)}

    for f = self-attention and feed-forward, alternately. Positions are part of the input x.

    Parameters
    ----------
    dim : int
        E, features of x.
    num_layers : int
        Number of blocks.
    num_heads : int
        H.
    hidden_dim : int, optional
        Hidden features of the feed-forward networks; 4 E by default.
    pre_norm : bool
        Whether the norm is applied before each branch, or after the residual sum, as in the paper.
    final_norm : bool, optional
        Whether there is a norm after the last block; by default True with `pre_norm`, else False.
    activation, gated, norm, eps, bias, num_kv_heads, rotary, recompute, init_std
        As in `TransformerBlock`.
    dropout, attention_dropout, hidden_dropout : float
        Dropout of the outputs of the branches, of attention weights, and of hidden features, with an `rng`.
    mixers : tuple of {"attention", "retnet", "gla", "delta_net", "gated_delta_net", "kda", "mamba2"} or LinearAttention
        The `mixer` of each block, repeated over the blocks: see `TransformerBlock`. Linear mixers need is_causal=True;
        a bias is that of the blocks with attention.

    Raises
    ------
    ValueError
        If a size, probability or option is invalid; if `fwd` has dropout and no `rng`.

    Notes
    -----
    `torch.nn.TransformerEncoder` in these terms: `norm_first` is `pre_norm`, its `norm` is `final_norm`; its `dropout`
    is all three of them; its boolean masks are True where a key is *hidden*.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762. Pre-norm: Xiong et al., 2020, arXiv:2002.04745.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> encoder = aa.models.Encoder(dim=8, num_layers=2, num_heads=2)
    >>> params = encoder.init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 8), np.float32)
    >>> y, ctx = encoder.fwd(params, x, kv_lengths=[5, 3])
    >>> y.shape, sorted(encoder.bwd(y, ctx).params), len(encoder.states(params, x))
    ((2, 5, 8), ['blocks', 'norm'], 2)
    """

    def __call__(
        self, params: Params, x: Array, *, rng: Philox | None = None, **options: Unpack[EncoderOptions]
    ) -> Any:
        """Return y (*batch, T, dim) of x (*batch, T, dim); without an `rng` there is no dropout.

        The options are `attn_mask`, `is_causal`, `kv_lengths`, `bias` and `context_parallel`, as in
        `multi_head_attention`, of each block; and `starts` (B,), the lengths of the left padding of x (B, T, dim).
        """
        *_, y = self._states(params, x, None, rng, options)
        return y

    def states(
        self, params: Params, x: Array, *, rng: Philox | None = None, **options: Unpack[EncoderOptions]
    ) -> list[Any]:
        """Return the output of every block, (*batch, T, dim) each; the last one is y."""
        return list(self._states(params, x, None, rng, options))

    def prepare(self, params: Params, *, weights: Weights | None = None) -> PreparedEncoder:
        """Return the encoder with its parameters, checked once and packed for many calls: ``prepared(x)``.

        As `BERT.prepare`: inference only, y is 0 beyond `kv_lengths`, `weights` may be "bfloat16".

        Examples
        --------
        >>> import numpy as np, attnarray as aa
        >>> encoder = aa.models.Encoder(dim=8, num_layers=2, num_heads=2)
        >>> params, x = encoder.init(aa.Philox(0)), np.ones((2, 5, 8), np.float32)
        >>> np.allclose(encoder.prepare(params)(x), encoder(params, x), atol=1e-6)
        True
        """
        return prepare_encoder(self, params, weights)

    def fwd(
        self, params: Params, x: Array, *, rng: Philox | None = None, **options: Unpack[EncoderOptions]
    ) -> tuple[Any, StackContext]:
        """Return y, and the context for `bwd`; dropout requires an `rng`."""
        return self._fwd(params, x, None, rng, options)

    def bwd(self, dout: Array, ctx: StackContext) -> EncoderGrads:
        """Return the gradients of x, the parameters, and the bias, which all blocks share; None without one."""
        grads = self._bwd(dout, ctx)
        return EncoderGrads(grads.x, grads.params, grads.bias)

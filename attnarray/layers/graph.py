"""Graph attention with its parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple

from attnarray import checks
from attnarray.attention.graph.graph_attention import GraphContext, graph_attention_bwd, graph_attention_fwd
from attnarray.attention.graph.options import SCORES, GraphScore
from attnarray.attention.sequences import narrow, project, project_backward, wide
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.layers.checking import check_gradients, check_same
from attnarray.layers.initial import Params, dense, glorot, zeros
from attnarray.layers.layer import Layer, Shapes
from attnarray.ops.linear import LinearContext
from attnarray.random import Philox


class GraphLayerContext(NamedTuple):
    maps: dict[str, LinearContext]
    attention: GraphContext
    has_bias: bool


class GraphLayerGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    edge_features: ArrayT | None
    params: Params


@dataclass(frozen=True)
class GraphAttention(Layer):
    r"""Graph attention of nodes over the edges that end in them: GAT and GATv2.

    .. math::
        h_i' = \big\Vert_{h=1}^{H} \sum_{e:\, j \to i} p_e^h\, W_s^h h_j + b, \qquad
        s_e = \begin{cases}
            a^T \mathrm{LeakyReLU}(W_t h_i + W_s h_j + W_e f_e) & \text{gatv2} \\
            \mathrm{LeakyReLU}(a^T [W_t h_i; W_s h_j; W_e f_e]) & \text{gat}
        \end{cases}

    with p the softmax of s over the edges that end in i; heads concatenated, or averaged.

    Parameters
    ----------
    in_dim : int
        Features of a node.
    head_dim : int
        Features F of a head.
    num_heads : int
        H.
    score : {"gatv2", "gat"}
    concat : bool
        Whether heads are concatenated, (*batch, N, H F), or averaged, (*batch, N, F), as in a last layer.
    edge_dim : int, optional
        Features of an edge; None for edges without features.
    share_weights : bool, optional
        Whether W_t is W_s. By default True for "gat" and False for "gatv2", as in the papers.
    bias : bool
        Whether there is b.
    residual : bool
        Whether W_r h_i is added, as in deep graph networks.
    negative_slope : float
        Slope of LeakyReLU below 0.

    Raises
    ------
    ValueError
        If the score is unknown, a size is not a positive integer, or the slope is not finite.

    References
    ----------
    Veličković et al., arXiv:1710.10903; Brody, Alon and Yahav, arXiv:2105.14491.

    Examples
    --------
    A node attends to itself only with a self-loop, which both papers add:

    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.GraphAttention(in_dim=5, head_dim=8, num_heads=2)
    >>> params = layer.init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((4, 5), np.float32)
    >>> edges = aa.add_self_loops(np.array([[0, 1, 3], [1, 0, 1]]), nodes=4)
    >>> out, ctx = layer.fwd(params, x, edges)
    >>> out.shape, aa.graph_attention_weights(ctx).shape, sorted(layer.bwd(out, ctx).params)
    ((4, 16), (7, 2), ['bias', 'score_vector', 'source', 'target'])
    """

    widths: ClassVar = {"x": ("in_dim",), "edge_features": ("edge_dim",)}

    in_dim: int
    head_dim: int
    num_heads: int = 1
    score: GraphScore = "gatv2"
    concat: bool = True
    edge_dim: int | None = None
    share_weights: bool | None = None
    bias: bool = True
    residual: bool = False
    negative_slope: float = 0.2

    def __post_init__(self) -> None:
        checks.choice("score", self.score, SCORES)
        super().__post_init__()
        if not math.isfinite(checks.real(self.negative_slope)):
            raise ValueError(f"`negative_slope` is {checks.shown(self.negative_slope)}, expected a finite number.")

    @property
    def _maps(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of each linear map."""
        width = self.num_heads * self.head_dim
        shared = self.score == "gat" if self.share_weights is None else self.share_weights
        maps = {"source": (width, self.in_dim)}
        if not shared:
            maps["target"] = (width, self.in_dim)
        if self.edge_dim is not None:
            maps["edge"] = (width, self.edge_dim)
        if self.residual:
            maps["residual"] = (width if self.concat else self.head_dim, self.in_dim)
        return maps

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters: source {weight (H F, in_dim)} and, those that apply, target, edge and residual.

        score_vector is (H, F) for "gatv2", (H, 2 F) for "gat" and (H, 3 F) for "gat" with edges; bias (H F,) or (F,).
        """
        score, *rest = rng.split(1 + len(self._maps))
        maps = self._maps.items()
        params: Params = {n: dense(r, *sizes, dtype, bias=False) for (n, sizes), r in zip(maps, rest, strict=True)}
        parts = 1 if self.score == "gatv2" else 2 if self.edge_dim is None else 3
        params["score_vector"] = glorot(score, (self.num_heads, parts * self.head_dim), dtype)
        if self.bias:
            params["bias"] = zeros(self.num_heads * self.head_dim if self.concat else self.head_dim, dtype=dtype)
        return params

    def shapes(self) -> Shapes:
        shapes: Shapes = {name: {"weight": sizes} for name, sizes in self._maps.items()}
        parts = 1 if self.score == "gatv2" else 2 if self.edge_dim is None else 3
        shapes["score_vector"] = (self.num_heads, parts * self.head_dim)
        width = self.num_heads * self.head_dim if self.concat else self.head_dim
        return {**shapes, "bias": (width,)} if self.bias else shapes

    def __call__(
        self,
        params: Params,
        x: ArrayT,
        edges: Array,
        edge_features: ArrayT | None = None,
        *,
        edge_mask: Array | None = None,
        dropout_p: float = 0.0,
        rng: Philox | int | None = None,
        dropout_mask: Array | None = None,
    ) -> ArrayT:
        """(*batch, N, H F), or (*batch, N, F), of nodes x (*batch, N, in_dim) and edges (2, E).

        `edge_features` are (*batch, E, edge_dim). Options as in `graph_attention`.
        """
        options = {"edge_mask": edge_mask, "dropout_p": dropout_p, "rng": rng, "dropout_mask": dropout_mask}
        return self._attend(params, x, edges, edge_features, options)[0]

    def fwd(
        self,
        params: Params,
        x: ArrayT,
        edges: Array,
        edge_features: ArrayT | None = None,
        *,
        edge_mask: Array | None = None,
        dropout_p: float = 0.0,
        rng: Philox | int | None = None,
        dropout_mask: Array | None = None,
    ) -> tuple[ArrayT, GraphLayerContext]:
        """The same, and the context for `bwd`."""
        options = {"edge_mask": edge_mask, "dropout_p": dropout_p, "rng": rng, "dropout_mask": dropout_mask}
        return self._attend(params, x, edges, edge_features, options)

    def _attend(
        self, params: Params, x: ArrayT, edges: Array, edge_features: Array | None, options: Any
    ) -> tuple[ArrayT, GraphLayerContext]:
        checks.required(x=x)
        given: dict[str, Any] = {"source": x, "target": x, "edge": edge_features, "residual": x}
        if (edge_features is None) != (self.edge_dim is None):
            raise ValueError(
                f"`edge_features` is {checks.shown(edge_features)}, but `edge_dim` of the layer is {self.edge_dim}; "
                "give both or neither."
            )
        projected, maps = {}, {}
        for name in self._maps:
            projected[name], maps[name] = project(given[name], params[name]["weight"])
        by_head = {name: self._by_head(y) for name, y in projected.items() if name != "residual"}
        source = by_head["source"]
        out, attention = graph_attention_fwd(
            by_head.get("target", source), source, source, wide(params["score_vector"]), edges, by_head.get("edge"),
            score=self.score, negative_slope=self.negative_slope, **options,
        )  # fmt: skip
        out = self._joined(out)
        for added in (projected.get("residual"), None if not self.bias else wide(params["bias"])):
            out = out if added is None else out + added
        return narrow(out, x), GraphLayerContext(maps, attention, self.bias)

    def bwd(self, dout: ArrayT, ctx: GraphLayerContext) -> GraphLayerGrads[ArrayT]:
        """The gradients of x, of the edge features (None where there are none), and of the parameters."""
        checks.context("ctx", ctx, GraphLayerContext)
        check_same(self, "linear maps and bias", (sorted(ctx.maps), ctx.has_bias), (sorted(self._maps), self.bias))
        like = ctx.maps["source"].x
        width = self.num_heads * self.head_dim if self.concat else self.head_dim
        xp = checks.cotangent(dout, (*like.shape[:-1], width), like)
        dout = wide(dout)
        grads = graph_attention_bwd(self._joined_backward(dout), ctx.attention)
        dsource = grads.key + grads.value
        douts = {"source": dsource if "target" in ctx.maps else dsource + grads.query, "target": grads.query}
        douts |= {"edge": grads.edge_features, "residual": dout}
        params: Params = {"score_vector": narrow(grads.score_vector, like)}
        if self.bias:
            params["bias"] = narrow(xp.sum(xp.reshape(dout, (-1, width)), axis=0), like)
        dx: Any = 0.0
        dedge = None
        for name, given in ctx.maps.items():
            flat = douts[name] if name == "residual" else _side_by_side(douts[name])
            map_grads = project_backward(flat, given)
            params[name] = {"weight": narrow(map_grads.weight, like)}
            if name == "edge":
                dedge = narrow(map_grads.x, like)
            else:
                dx = map_grads.x + dx
        return GraphLayerGrads(narrow(dx, like), dedge, check_gradients(self, params))

    def _by_head(self, x: Array) -> Array:
        """(*batch, N, H F) -> (*batch, N, H, F)."""
        return namespace_of(x).reshape(x, (*x.shape[:-1], self.num_heads, self.head_dim))

    def _joined(self, out: Array) -> Array:
        """The heads (*batch, N, H, F) concatenated, or averaged."""
        xp = namespace_of(out)
        return (
            xp.reshape(out, (*out.shape[:-2], self.num_heads * self.head_dim)) if self.concat else xp.mean(out, axis=-2)
        )

    def _joined_backward(self, dout: Array) -> Array:
        """The gradient of `_joined`."""
        if self.concat:
            return self._by_head(dout)
        shape = (*dout.shape[:-1], self.num_heads, self.head_dim)
        return namespace_of(dout).broadcast_to(dout[..., None, :] / self.num_heads, shape)


def _side_by_side(x: Array) -> Array:
    """(*batch, N, H, F) -> (*batch, N, H F), also for N = 0."""
    return namespace_of(x).reshape(x, (*x.shape[:-2], x.shape[-2] * x.shape[-1]))

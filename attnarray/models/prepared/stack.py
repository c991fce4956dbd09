"""What all prepared models share: how their blocks compute, and weights rounded to 16 bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from attnarray import checks
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.backend import Array, dtype_name
from attnarray.layers.checking import Checked
from attnarray.layers.initial import Params
from attnarray.ops.rotary import Rotary, rotary

if TYPE_CHECKING:
    from attnarray.models.transformer.encoder import Encoder

Weights = Literal["bfloat16"]


class Stack(NamedTuple):
    """How blocks compute, for kernels: the fields of a `TransformerBlock`, and the dtypes."""

    dim: int
    num_layers: int
    mixers: tuple[Any, ...]
    num_heads: int
    num_kv_heads: int
    hidden_dim: int
    pre_norm: bool
    norm: str
    eps: float
    activation: str
    gated: bool
    rotary: Rotary | Any  # None without
    modifiers: ScoreModifiers
    halves: bool  # whether weights are kept in bfloat16
    dtype: str  # of the parameters
    result: Any  # the dtype of the result

    def norm_fields(self, params: Params) -> tuple[Params, int, float, bool]:
        """A norm for kernels: its parameters, its width, epsilon, and whether it subtracts the mean."""
        return params, self.dim, self.eps, self.norm == "layer"

    def rotated(self, x: Any) -> Any:
        """Rows x (T, D) of one head, rotated by the positions 0, 1, ..."""
        return rotary(x, **{option.name: getattr(self.rotary, option.name) for option in fields(self.rotary)})


def make_stack(body: Encoder, leaf: Any, halves: bool) -> Stack:
    """The stack of the blocks of an encoder, with parameters like `leaf`."""
    block = body.block
    return Stack(
        block.dim, body.num_layers, body.mixers, block.num_heads, block.num_kv_heads or block.num_heads,
        block.hidden_dim or 4 * block.dim, block.pre_norm, block.norm, block.eps, block.activation, block.gated,
        block.rotary, ScoreModifiers(1.0 / math.sqrt(block.dim // block.num_heads)), halves, dtype_name(leaf.dtype),
        leaf.dtype,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model with its parameters; `kept` is what kernels made of them, and is not copied or pickled."""

    model: Any
    params: Params = field(repr=False)
    stack: Stack = field(repr=False)
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def rounded(params: Params, weights: Weights | None, names: tuple[str, ...] = ()) -> tuple[Checked, bool]:
    """The parameters, with the weights of the blocks and of `names` rounded as asked for; whether they are bfloat16.

    x is rounded to 8 bits by the sum c + (x - c) with c = (2^16 + 1) x, as its float32 has 24.
    """
    if weights is not None:
        checks.choice("weights", weights, ("bfloat16",))
    leaf = params["blocks"][0]["attention"]["query"]["weight"]
    dtype = dtype_name(leaf.dtype)
    if weights is None or dtype == "bfloat16":
        return Checked(params), dtype == "bfloat16"
    if dtype != "float32":
        raise ValueError(f"`weights` is {weights!r}, but `params` have dtype {dtype}: expected float32.")

    def round_one(x: Array) -> Array:
        large = x * (2.0**16 + 1.0)
        return large - (large - x)

    changed = {name: _map_weights(params[name], round_one) for name in names}
    blocks = [
        {**block, **{name: _map_weights(block[name], round_one) for name in ("attention", "feed_forward")}}
        for block in params["blocks"]
    ]
    return Checked({**params, **changed, "blocks": blocks}), True


def _map_weights(params: Any, change: Callable[[Array], Array]) -> Any:
    """The same tree with changed leaves `weight`."""
    if isinstance(params, list):
        return [_map_weights(part, change) for part in params]
    if not isinstance(params, dict):
        return params
    return {name: change(leaf) if name == "weight" else _map_weights(leaf, change) for name, leaf in params.items()}

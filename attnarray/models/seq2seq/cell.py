"""A recurrent cell with its parameters, a GRU or an LSTM, with a tuple as its state: (h,) or (h, c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from attnarray import checks
from attnarray.backend import Array
from attnarray.layers.initial import Params, glorot, zeros
from attnarray.layers.layer import Layer, Shapes
from attnarray.ops.gru import GRUResult, gru_bwd, gru_fwd
from attnarray.ops.lstm import LSTMResult, lstm_bwd, lstm_fwd
from attnarray.random import Philox

CellKind = Literal["gru", "lstm"]
# Each cell as its forward, its backward, its result, the number of its gates, and the names of its states.
CELLS: dict[CellKind, tuple[Any, Any, Any, int, tuple[str, ...]]] = {
    "gru": (gru_fwd, gru_bwd, GRUResult, 3, ("h",)),
    "lstm": (lstm_fwd, lstm_bwd, LSTMResult, 4, ("h", "c")),
}
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
State = tuple[Array, ...]


class CellGrads(NamedTuple):
    x: Any
    state: tuple[Any, ...]
    params: Params


@dataclass(frozen=True)
class Cell(Layer):
    """A cell of `hidden_dim` features over inputs of `in_dim`; `gru` and `lstm` have the formulas."""

    kind: CellKind
    in_dim: int
    hidden_dim: int

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("cell", self.kind, tuple(CELLS))

    @property
    def states(self) -> tuple[str, ...]:
        """The names of its states."""
        return CELLS[self.kind][4]

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """weight_ih (G H, in_dim), weight_hh (G H, H), bias_ih and bias_hh (G H,), which are 0; G gates of H."""
        input_rng, state_rng = rng.split(2)
        shapes = self.shapes()
        return {
            "weight_ih": glorot(input_rng, shapes["weight_ih"], dtype),
            "weight_hh": glorot(state_rng, shapes["weight_hh"], dtype),
            **{name: zeros(*shapes[name], dtype=dtype) for name in ("bias_ih", "bias_hh")},
        }

    def shapes(self) -> Shapes:
        rows = CELLS[self.kind][3] * self.hidden_dim
        return dict(zip(NAMES, ((rows, self.in_dim), (rows, self.hidden_dim), (rows,), (rows,)), strict=True))

    def fwd(
        self, params: Params, x: Array, state: State | None = None, *, mask: Array | None = None, reverse: bool = False
    ) -> tuple[Any, State, Any]:
        """Return the outputs (B, T, H) of x (B, T, in_dim), the final state, and the context."""
        start = {} if state is None else {f"{name}0": array for name, array in zip(self.states, state, strict=True)}
        result, ctx = CELLS[self.kind][0](x, **params, **start, mask=mask, reverse=reverse)
        return result.out, tuple(result[1:]), ctx

    def bwd(self, dout: Array | None, dstate: tuple[Array | None, ...], ctx: Any) -> CellGrads:
        """Return the gradients of x, the initial state and the parameters."""
        _, backward, result, _, names = CELLS[self.kind]
        grads = backward(result(dout, *dstate), ctx)
        params = {name: getattr(grads, name) for name in NAMES}
        return CellGrads(grads.x, tuple(getattr(grads, f"{name}0") for name in names), params)

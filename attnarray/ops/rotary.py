"""Rotary positions (RoPE): pairs of features are rotated by angles that grow with the position."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, cast, get_args

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, index_dtype, namespace_of, to_numpy
from attnarray.dispatch import accelerated
from attnarray.masks import LARGEST_POSITION
from attnarray.ops.positions import check_positions, even
from attnarray.ops.rotary_scaling import BY_LENGTH, SCALINGS, Frequencies, RotaryScaling, plain_frequencies

Scaling = Literal["linear", "ntk"]
NAMED_SCALINGS: tuple[Scaling | None, ...] = (None, *get_args(Scaling))


@dataclass(frozen=True)
class Rotary:
    """How a layer rotates its queries and keys: the options of `rotary`, as a configuration.

    Raises
    ------
    ValueError
        As `rotary`.

    Examples
    --------
    >>> import attnarray as aa
    >>> layer = aa.layers.MultiHeadAttention(dim=16, num_heads=4, rotary=aa.Rotary(base=500_000.0))
    >>> longer = aa.Rotary(base=500_000.0, scaling=aa.Llama3RoPE(factor=8.0, original_max_seq_len=8192))
    """

    dims: int | None = None
    base: float = 10_000.0
    interleaved: bool = False
    scaling: Scaling | RotaryScaling | None = None
    factor: float = 1.0
    sections: tuple[int, ...] | None = None
    axial: bool = False

    def __post_init__(self) -> None:
        checks.plain_fields(self)
        if self.dims is not None:
            even("dims", self.dims, "features are rotated in pairs")
        for name in ("base", "factor"):
            checks.positive(name, getattr(self, name))
        checks.flag("interleaved", self.interleaved)
        if self.dims is not None:
            _check_pairs(self.dims, self.base, self.scaling, self.factor, self.sections, self.axial)

    def check_width(self, name: str, width: int) -> None:
        """Check that heads of this width have the features that are rotated."""
        if width < (self.dims or 0) or (self.dims is None and width % 2):
            expected = "an even number: features are rotated in pairs" if self.dims is None else f">= {self.dims}"
            raise ValueError(f"`{name}` is {width}, the width of one head, expected {expected} (`rotary.dims`).")
        _check_pairs(self.dims or width, self.base, self.scaling, self.factor, self.sections, self.axial)

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies depend on `seq_len`."""
        return isinstance(self.scaling, BY_LENGTH)


class Rotation(NamedTuple):
    """Which pairs of features are rotated, and at which frequencies."""

    frequencies: Frequencies  # of the R / 2 pairs
    magnitude: float  # what rotated features are multiplied by
    interleaved: bool
    axis: int  # of the positions: -2, or -3 in the layout BTHD
    sections: tuple[int, ...] | None = None  # pairs that each coordinate of a position rotates

    @property
    def dims(self) -> int:
        """R."""
        return 2 * len(self.frequencies)

    @property
    def coordinates(self) -> list[int]:
        """The coordinate of positions that rotates each pair."""
        return [n for n, count in enumerate(self.sections or ()) for _ in range(count)]


class RotaryContext(NamedTuple, Generic[ArrayT]):
    """The positions, None for consecutive ones from `offset` on, and only shape and dtype of x."""

    positions: Array | None
    offset: int
    rotation: Rotation
    shape: tuple[int, ...]
    like: ArrayT  # () of the dtype of x


class RotaryGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def rotary(
    x: ArrayT,
    positions: Array | None = None,
    *,
    offset: int = 0,
    dims: int | None = None,
    base: float = 10_000.0,
    interleaved: bool = False,
    scaling: Scaling | RotaryScaling | None = None,
    factor: float = 1.0,
    sections: tuple[int, ...] | None = None,
    axial: bool = False,
    seq_len: int | None = None,
    layout: checks.LayoutName = "BHTD",
) -> ArrayT:
    r"""Queries or keys, each pair of features rotated by an angle that is its position times its frequency.

    .. math::
        \begin{pmatrix} y_a \\ y_b \end{pmatrix} =
        \begin{pmatrix} \cos t\omega_n & -\sin t\omega_n \\ \sin t\omega_n & \cos t\omega_n \end{pmatrix}
        \begin{pmatrix} x_a \\ x_b \end{pmatrix}, \qquad \omega_n = b^{-2n / R}, \quad n < R / 2

    so that the dot product of a query at position t and a key at s depends on t - s alone. Rotate both, not the values.

    Parameters
    ----------
    x : (*batch, T, D) floating
        Queries or keys, with or without heads: (B, H, T, D), or (B, T, H, D) with `layout`. 16-bit types are rotated
        in float32.
    positions : (*batch, T) integer, or broadcastable to it, optional
        t of each row, integers; offset, offset + 1, ... by default. Heads are part of the batch: for all of them alike,
        (B, 1, T). In the layout BTHD they have no axis here: (B, T).
    offset : int
        The position of the first row: with a cache of keys, how many there were before. Only without `positions`.
    dims : int, optional
        R, even: the first R of the D features are rotated, the others are not. All of them by default.
    base : float
        b.
    interleaved : bool
        Which features are a pair: n and n + R / 2 by default (GPT-NeoX, LLaMA in most libraries), 2 n and 2 n + 1 if
        interleaved (the paper, GPT-J). Weights that were trained with the one do not work with the other.
    scaling : {None, "linear", "ntk"}, DynamicNTK, YaRN, Llama3RoPE or LongRoPE
        How to extend to longer texts than those of the training: positions divided by `factor` ("linear"), or a base
        that is factor^(R / (R - 2)) times larger, so that low frequencies stretch and high ones stay ("ntk"). The
        others have their own numbers, and YaRN and LongRoPE also multiply what is rotated by an attention factor.
    factor : float
        How many times longer, for "linear" and "ntk".
    sections : tuple of int, optional
        How many pairs each coordinate of a position rotates, R / 2 in all. Positions then have one more axis for the
        coordinates, (*batch, T, A). The frequencies are the same ladder as for one coordinate: M-RoPE, for time, height
        and width. Without `positions` all coordinates are those of a text: offset, offset + 1, ...
    axial : bool
        Whether the frequencies of each of the `sections` begin at 1 again, :math:`\omega_n = b^{-n / N}` for the N
        pairs of one: for images, 2-D positions of rows and columns.
    seq_len : int, optional
        The length of the whole text for DynamicNTK and LongRoPE; by default the largest position plus 1.
    layout : {"BHTD", "BTHD"}
        Whether the axis of heads is before or after that of positions.

    Returns
    -------
    (*batch, T, D) array
        The dtype of `x`. Angles are computed in float64 where the library has it.

    Raises
    ------
    ValueError
        If `dims` is odd or exceeds D, D is odd without `dims`, `positions` do not broadcast to the rows, `offset` and
        `positions` are both given, `base` or `factor` is not positive, or `sections` are not of R / 2 pairs.
    TypeError
        If `x` is not floating, or `positions` not integer.

    References
    ----------
    Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021, arXiv:2104.09864. Linear scaling:
    Chen et al., 2023, arXiv:2306.15595. NTK-aware scaling: Peng et al., 2023, arXiv:2309.00071, section 3.1. Sections:
    Wang et al., "Qwen2-VL", 2024, arXiv:2409.12191, section 2.1.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k = np.random.default_rng(0).standard_normal((2, 7, 8))
    >>> near = aa.rotary(q, offset=2) @ aa.rotary(k).T
    >>> far = aa.rotary(q, offset=52) @ aa.rotary(k, offset=50).T
    >>> bool(np.allclose(near, far))
    True

    Patches of an image by row and column:

    >>> patches = np.stack(np.meshgrid(np.arange(2), np.arange(3), indexing="ij"), axis=-1).reshape(6, 2)
    >>> aa.rotary(np.ones((6, 8)), patches, sections=(2, 2), axial=True).shape
    (6, 8)
    """
    return rotary_fwd(
        x, positions, offset=offset, dims=dims, base=base, interleaved=interleaved, scaling=scaling, factor=factor,
        sections=sections, axial=axial, seq_len=seq_len, layout=layout,
    )[0]  # fmt: skip


def rotary_fwd(
    x: ArrayT,
    positions: Array | None = None,
    *,
    offset: int = 0,
    dims: int | None = None,
    base: float = 10_000.0,
    interleaved: bool = False,
    scaling: Scaling | RotaryScaling | None = None,
    factor: float = 1.0,
    sections: tuple[int, ...] | None = None,
    axial: bool = False,
    seq_len: int | None = None,
    layout: checks.LayoutName = "BHTD",
) -> tuple[ArrayT, RotaryContext[ArrayT]]:
    """`rotary` and the context for `rotary_bwd`: the positions and options."""
    axis, offset = _check(x, positions, offset, layout, sections)
    dims = _rotated_dims(x, dims)
    base, factor = checks.positive("base", base), checks.positive("factor", factor)
    _check_pairs(dims, base, scaling, factor, sections, axial)
    if axial and positions is None:
        raise ValueError("`positions` is None, but `axial` needs them: an array (*batch, T, A) of coordinates.")
    length, hashable = 0, cast(Any, scaling)
    if seq_len is not None:
        length = checks.whole("seq_len", seq_len, 0, LARGEST_POSITION, "the length of the whole text")
    elif isinstance(scaling, BY_LENGTH):
        last = offset + x.shape[axis] - 1 if positions is None else to_numpy(positions).max(initial=-1)
        length = max(int(last) + 1, 0)
    frequencies = _frequencies(dims, base, hashable, factor, sections if axial else None, length)
    magnitude = 1.0 if scaling is None or isinstance(scaling, str) else scaling.magnitude
    rotation = Rotation(frequencies, magnitude, checks.flag("interleaved", interleaved), axis, sections)
    like = namespace_of(x).zeros((), dtype=x.dtype, device=device_of(x))
    return _rotary(x, positions, offset, rotation, 1.0), RotaryContext(
        positions, offset, rotation, tuple(x.shape), like
    )


def rotary_bwd(dout: Array, ctx: RotaryContext[ArrayT]) -> RotaryGrads[ArrayT]:
    r"""The gradient of the rotation: the rotation back, times the same attention factor if there is one.

    .. math::
        \begin{pmatrix} dx_a \\ dx_b \end{pmatrix} =
        \begin{pmatrix} \cos t\omega_n & \sin t\omega_n \\ -\sin t\omega_n & \cos t\omega_n \end{pmatrix}
        \begin{pmatrix} dy_a \\ dy_b \end{pmatrix}

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> y, ctx = aa.rotary_fwd(np.ones((3, 4)))
    >>> aa.rotary_bwd(y, ctx).x.round(12).tolist() == np.ones((3, 4)).tolist()
    True
    """
    checks.context("ctx", ctx, RotaryContext)
    checks.cotangent(dout, ctx.shape, ctx.like)
    return RotaryGrads(_rotary(dout, ctx.positions, ctx.offset, ctx.rotation, -1.0))


@accelerated
def _rotary(x: Array, positions: Array | None, offset: int, rotation: Rotation, direction: float) -> Any:
    """x (..., T, D) rotated by the angles of its positions, offset, offset + 1, ... unless given; back if -1."""
    xp = namespace_of(x, positions)
    dims, magnitude, axis, sections = rotation.dims, rotation.magnitude, rotation.axis, rotation.sections
    if positions is None:
        positions = xp.arange(offset, offset + x.shape[axis], device=device_of(x))
        sections = None
    exact = xp.float64 if index_dtype(xp, positions) == xp.int64 else xp.float32
    frequencies = xp.asarray(rotation.frequencies, dtype=exact, device=device_of(x))
    if sections is None:
        positions = positions[..., None]
    else:
        positions = xp.take(positions, xp.asarray(rotation.coordinates, device=device_of(x)), axis=-1)
    angles = xp.astype(positions, exact) * frequencies  # (..., T, R / 2)
    angles = angles if axis == -2 else angles[..., None, :]
    wide = xp.astype(x[..., :dims], accumulator_dtype(xp, x.dtype), copy=False)
    tables = magnitude * xp.cos(angles), direction * magnitude * xp.sin(angles)
    cos, sin = (xp.astype(table, wide.dtype, copy=False) for table in tables)
    y = xp.astype(rotate(wide, cos, sin, rotation.interleaved), x.dtype, copy=False)
    return y if dims == x.shape[-1] else xp.concat([y, x[..., dims:]], axis=-1)


def rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Any:
    """x (..., R), whose pairs are rotated by the angles of these cosines and sines, broadcastable to (..., R / 2)."""
    xp, half = namespace_of(x, cos, sin), x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    pair = a * cos - b * sin, a * sin + b * cos
    return xp.reshape(xp.stack(pair, axis=-1) if interleaved else xp.concat(pair, axis=-1), x.shape)


def _check(
    x: Array, positions: Array | None, offset: int, layout: checks.LayoutName, sections: tuple[int, ...] | None
) -> tuple[int, int]:
    """The axis of positions, and the offset."""
    checks.choice("layout", layout, checks.LAYOUTS)
    axis = -2 if layout == "BHTD" else -3
    checks.namespace(x=x, positions=positions)
    checks.floating(x=x)
    if x.ndim < -axis:
        axes = "two axes: (*batch, T, D)" if axis == -2 else "three axes: (*batch, T, H, D)"
        raise ValueError(f"`x` has shape {tuple(x.shape)}, expected at least {axes}.")
    offset = checks.whole("offset", offset, -LARGEST_POSITION, LARGEST_POSITION, "the position of the first row")
    if positions is not None and offset:
        raise ValueError("`positions` and `offset` are both given; add the offset to the positions.")
    if positions is not None:
        check_positions("positions", checks.integer("positions", positions))
        if sections is not None:
            if not positions.ndim or positions.shape[-1] != len(sections):
                raise ValueError(
                    f"`positions` has shape {tuple(positions.shape)}, expected (*batch, T, {len(sections)}): one "
                    "coordinate for each of the `sections`."
                )
            positions = positions[..., 0]
        checks.broadcasts("positions", positions, tuple(x.shape[: axis + 1]), "(*batch, T)")
    return axis, offset


def _check_pairs(
    dims: int, base: float, scaling: Any, factor: float, sections: tuple[int, ...] | None, axial: bool
) -> None:
    """Check the scaling and the sections against the number of rotated features."""
    if isinstance(scaling, SCALINGS):
        scaling.check(dims, base)
        if factor != 1.0:
            raise ValueError(f"`factor` is {factor:g}, but a {type(scaling).__name__} has its own: leave it out.")
    elif scaling not in NAMED_SCALINGS:
        names = ", ".join(kind.__name__ for kind in SCALINGS)
        raise ValueError(f"`scaling` is {checks.shown(scaling)}, expected None, 'linear', 'ntk', or one of {names}.")
    if checks.flag("axial", axial) and sections is None:
        raise ValueError("`axial` is True, but `sections` is None. Give the number of pairs of each coordinate.")
    if axial and scaling is not None:
        raise ValueError(f"`axial` is True with `scaling` {checks.shown(scaling)}: there is no such scaling. Drop one.")
    if sections is None:
        return
    counts = sections if isinstance(sections, tuple) else ()
    whole = [checks.integral(count) for count in counts]
    if not whole or any(count is None or count < 1 for count in whole) or 2 * sum(counts) != dims:
        raise ValueError(
            f"`sections` is {checks.shown(sections)}, expected a tuple of integers with the sum {dims // 2}: the pairs "
            f"of the {dims} features that are rotated."
        )


@functools.lru_cache(maxsize=64)
def _frequencies(
    dims: int, base: float, scaling: Any, factor: float, own: tuple[int, ...] | None, seq_len: int
) -> Frequencies:
    """Those of R / 2 pairs; `own` are the sections whose frequencies begin anew."""
    if own is not None:
        return tuple(w for count in own for w in plain_frequencies(2 * count, base))
    if isinstance(scaling, SCALINGS):
        return scaling.frequencies(dims, base, seq_len)
    if scaling == "ntk" and dims > 2:  # the only frequency of two features is 1 for any base
        base = _stretched(base, factor, dims)
    divisor = factor if scaling == "linear" else 1.0
    return tuple(w / divisor for w in plain_frequencies(dims, base))


def _stretched(base: float, factor: float, dims: int) -> float:
    try:
        stretched = base * math.pow(factor, dims / (dims - 2))
    except OverflowError:
        stretched = math.inf
    if not 0 < stretched < math.inf:
        raise ValueError(
            f"`factor` is {factor:g}, which makes the base {stretched:g} with scaling='ntk', expected a factor such as "
            "4.0: how many times longer texts are."
        )
    return stretched


def _rotated_dims(x: Array, dims: int | None) -> int:
    """R."""
    if dims is None:
        if x.shape[-1] % 2 or not x.shape[-1]:
            raise ValueError(
                f"`x` has {x.shape[-1]} features, expected an even number: they are rotated in pairs. "
                f"Rotate fewer with `dims`. {checks.shapes(x=x)}"
            )
        return int(x.shape[-1])
    dims = even("dims", dims, "features are rotated in pairs")
    if dims > x.shape[-1]:
        raise ValueError(f"`dims` is {dims}, but `x` has only {x.shape[-1]} features. {checks.shapes(x=x)}")
    return dims

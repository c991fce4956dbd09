"""What masks are asked about: pairs of queries and keys, and tiles of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray import checks
from attnarray.backend import to_numpy


class Sizes(NamedTuple):
    """The sizes of the scores that a mask is asked about, and an array of the call (None for NumPy).

    Without heads, arrays over pairs have no axis for them.
    """

    batch: tuple[int, ...]
    heads: int
    queries: int
    keys: int
    like: Any = None
    has_heads: bool = True

    def per_batch(self, name: str, value: Any) -> Any:
        """One integer, or one for each batch as a NumPy array (B, 1, 1, 1)."""
        if isinstance(value, int):
            return value
        array = to_numpy(value)
        if array.shape not in ((), self.batch):
            expected = f"one integer for all, or one per batch: {self.batch}"
            raise ValueError(f"`{name}` has shape {array.shape}, expected {expected}.")
        return np.broadcast_to(array, self.batch).reshape(-1, 1, 1, 1)

    def per_pair(self, name: str, array: Any, rows: int, columns: int) -> np.ndarray:
        """An array that broadcasts to (*batch, H, rows, columns) as a NumPy array (B|1, H|1, rows, columns)."""
        heads = (self.heads,) if self.has_heads else ()
        axes = "(*batch, H, ...)" if heads else "(*batch, ...)"
        checks.broadcasts(name, array, (*self.batch, *heads, rows, columns), axes)
        host = to_numpy(array)
        host = host if self.has_heads or host.ndim < 3 else host[..., None, :, :]
        lead = (1,) * (len(self.batch) + 3 - host.ndim) + host.shape[:-2]
        batch = (1,) * len(self.batch) if math.prod(lead[:-1]) == 1 else self.batch
        full = np.broadcast_to(host, (*batch, lead[-1], rows, columns))
        return full.reshape(math.prod(batch), lead[-1], rows, columns)


class Pairs(NamedTuple):
    """Pairs of queries and keys, as NumPy arrays of integers that broadcast together.

    b counts batches and h heads, i and j count queries and keys from those given, q and k are their positions.
    """

    b: Any
    h: Any
    i: Any
    j: Any
    q: Any
    k: Any
    sizes: Sizes


class Grid(NamedTuple):
    """All tiles of the scores: the first and the last position of their queries (B|1, 1, Q, 1) and keys (1, 1, 1, K).

    i_first and j_first are counted from the queries and keys given, as vectors (Q,) and (K,).
    """

    i_first: np.ndarray
    j_first: np.ndarray
    q_first: np.ndarray
    q_last: np.ndarray
    k_first: np.ndarray
    k_last: np.ndarray
    sizes: Sizes
    is_part: bool = False  # whether the keys are a part of more


class Tiles(NamedTuple):
    """Some tiles (N,) of a grid: their places in it, and the positions of their first query and key."""

    b: np.ndarray
    h: np.ndarray
    row: np.ndarray
    column: np.ndarray
    q_first: np.ndarray
    k_first: np.ndarray
    size: int
    grid: Grid

    def pick(self, values: Any) -> np.ndarray:
        """Of an array over the grid (B|1, H|1, Q|1, K|1) the entries of these tiles."""
        values = np.asarray(values)
        places = zip((self.b, self.h, self.row, self.column), values.shape, strict=True)
        return np.asarray(values[tuple(place if size > 1 else np.zeros_like(place) for place, size in places)])


Kinds = tuple[Any, Any]  # over the grid: may something be allowed in a tile? is surely all of it?

"""Ranks on a grid: heads are exchanged along one axis, keys travel along the other."""

from __future__ import annotations

from typing import Any, NamedTuple

from attnarray import checks
from attnarray.distributed.communicator import Communicator, check_comm


class Grid(NamedTuple):
    """Communicators of a rank's row, whose ranks exchange heads, and of its column, whose ranks are a ring.

    Examples
    --------
    >>> from attnarray.distributed import ThreadComm, grid
    >>> ThreadComm(4).run(lambda comm: grid(comm, 2).heads.allgather(comm.rank))
    [[0, 1], [0, 1], [2, 3], [2, 3]]
    """

    heads: Any
    ring: Any

    def Get_rank(self) -> int:
        return int(self.ring.Get_rank() * self.heads.Get_size() + self.heads.Get_rank())

    def Get_size(self) -> int:
        return int(self.ring.Get_size() * self.heads.Get_size())

    def allgather(self, sendobj: Any, /) -> list[Any]:
        """The objects of all ranks of the grid, row by row."""
        return [found for row in self.ring.allgather(self.heads.allgather(sendobj)) for found in row]


class Alone:
    """The communicator of a single rank."""

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1

    def allgather(self, sendobj: Any) -> list[Any]:
        return [sendobj]


def grid(comm: Communicator, head_ranks: int) -> Grid:
    """Arrange the ranks of `comm` for `all_to_all_attention`: `head_ranks` in each row, row by row.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or the communicator that `ThreadComm` gives
    head_ranks : int
        How many ranks exchange heads with each other; it divides the number of ranks. Neighbors are best on one
        machine, as they exchange most.

    Returns
    -------
    Grid

    Raises
    ------
    ValueError
        If `head_ranks` does not divide the number of ranks.
    """
    check_comm(comm)
    size = comm.Get_size()
    head_ranks = checks.whole("head_ranks", head_ranks, 1, size, "the number of ranks that exchange heads")
    if size % head_ranks:
        raise ValueError(f"`head_ranks` ({head_ranks}) must divide the number of ranks ({size}).")
    row, column = divmod(comm.Get_rank(), head_ranks)
    return Grid(comm.Split(row, column), comm.Split(column, row))

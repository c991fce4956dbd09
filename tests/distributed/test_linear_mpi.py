"""Linear attention on processes of an MPI."""

from __future__ import annotations

import pytest

from tests.support.linear_calls import CASES
from tests.support.mpi import results


@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_ranks_equal_one_process(size: int) -> None:
    found = results(size, "linear")
    assert len(found) == 2 * len(CASES)
    for name, error in found.items():
        assert error <= 1e-11, name

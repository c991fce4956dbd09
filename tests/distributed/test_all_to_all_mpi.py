"""All-to-all attention on processes of an MPI."""

from __future__ import annotations

import pytest

from tests.support.mpi import results
from tests.support.ring_calls import OPTIONS, TOLERANCES


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "head_ranks"), [(3, 3), (4, 2)])
def test_ranks_equal_one_process(size: int, head_ranks: int) -> None:
    found = results(size, "all_to_all", str(head_ranks))
    assert found.keys() == OPTIONS.keys()
    for name, error in found.items():
        assert error <= TOLERANCES["float64"], name

"""Models whose sequences are divided, on processes of an MPI."""

from __future__ import annotations

import pytest

from tests.support.context_calls import MODELS
from tests.support.mpi import results


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_equal_one_process(size: int) -> None:
    found = results(size, "context")
    assert found.keys() == MODELS.keys()
    for name, error in found.items():
        assert error <= 1e-12, name

"""Ring attention on processes of an MPI."""

from __future__ import annotations

import pytest

from tests.support.mpi import results, run_ranks
from tests.support.ring_calls import OPTIONS, TOLERANCES

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_ranks_equal_one_process(size: int) -> None:
    found = results(size, "ring")
    assert len(found) == 3 * len(OPTIONS)
    for name, error in found.items():
        assert error <= TOLERANCES[name.split(",")[0]], name


def test_messages_of_megabytes() -> None:
    assert results(3, "large") == {"equal": True, "finite": True}


def test_an_error_on_one_rank_stops_all() -> None:
    found = results(3, "errors")
    for name in ("options", "dtype", "bias", "call"):
        assert len(set(found[name])) == 1, name
        assert "differs between ranks" in found[name][0], name
    for name in ("input", "computing", "computing gradients"):
        own = "ValueError: `key` has head dim 3" if name == "input" else "MemoryError: no memory left"
        assert found[name][1].startswith(own), name
        assert found[name][0] == found[name][2], name
        assert found[name][0].startswith("RankError: Rank 1 of 3 stopped"), name


def test_a_rank_that_raises_elsewhere_ends_all() -> None:
    done = run_ranks(3, "-m", "tests.support.mpi_programs", "stops")
    assert done.returncode != 0
    assert "ZeroDivisionError: my own" in done.stderr

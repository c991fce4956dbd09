"""Linear attention over ranks equals that of one process, by a scan of the states or from rank to rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.distributed import (
    RankError,
    ThreadComm,
    scan_linear_attention,
    scan_linear_attention_bwd,
    scan_linear_attention_fwd,
)
from tests.support.linear_calls import CASES, errors, make_call, rank_results, whole_results


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("with_initial", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_ranks_equal_one_process(name: str, with_initial: bool, size: int) -> None:
    call = make_call(name, with_initial)
    with aa.use_kernels("reference"):
        whole = whole_results(call)
        results = ThreadComm(size).run(lambda comm: rank_results(comm, call, whole[0].state))
    assert all((own.initial_state is None) == (not with_initial) for _, own in results)
    for part, error in errors(results, call, whole).items():
        assert error <= 1e-11, part


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_errors_stop_all_ranks(rule: Any) -> None:
    x, beta = np.ones((1, 2, 4, 3)), np.ones((1, 2, 4))
    given: Any = {"rule": rule, **({"beta": beta} if rule == "delta" else {})}

    def on_rank(comm: Any) -> None:
        with pytest.raises(ValueError, match="`scale` differs between ranks"):
            scan_linear_attention(comm, x, x, x, **given, scale=1.0 + comm.rank)
        with pytest.raises(ValueError if comm.rank == 1 else RankError, match="key"):
            scan_linear_attention(comm, x, x[..., :2] if comm.rank == 1 else x, x, **given)
        with pytest.raises(TypeError, match="`lengths` is not taken"):
            scan_linear_attention(comm, x, x, x, **given, lengths=2)
        result, ctx = scan_linear_attention_fwd(comm, x, x, x, **given)
        with pytest.raises(ValueError if comm.rank == 0 else RankError, match="has shape"):
            scan_linear_attention_bwd(result.out[..., :1] if comm.rank == 0 else result.out, ctx)
        with pytest.raises(TypeError, match="expected the ScanContext"):
            scan_linear_attention_bwd(result.out, None)  # type: ignore[arg-type]

    with aa.use_kernels("reference"):
        ThreadComm(3).run(on_rank)

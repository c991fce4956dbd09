"""Attention on Dask arrays equals that on whole arrays, whatever the chunks; wrong chunks are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.support.dask_calls import blocked_results, dask_arrays
from tests.support.ring_calls import DV, OPTIONS, TOLERANCES, B, D, S, T, errors, make_call, whole_results

pytestmark = pytest.mark.distributed


@pytest.fixture(autouse=True)
def _threads() -> Any:
    dask = pytest.importorskip("dask")
    with dask.config.set(scheduler="threads", num_workers=2):
        yield


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", OPTIONS)
def test_blocks_equal_the_whole(name: str, dtype: str) -> None:
    call = make_call(name, dtype)
    for result, error in errors(blocked_results(call), whole_results(call)).items():
        assert error <= TOLERANCES[dtype], result


@pytest.mark.parametrize("keys", [2, (9, 3, 14), -1])
@pytest.mark.parametrize("queries", [6, -1])
@pytest.mark.parametrize("heads", [1, 2])
def test_any_chunks(keys: Any, queries: Any, heads: int) -> None:
    chunks = {"query": (-1, 2 * heads, queries, -1), "key": (-1, heads, keys, -1), "value": (-1, heads, keys, -1)}
    for name in ("dropout", "sinks"):
        call = make_call(name, "float64")
        for result, error in errors(blocked_results(call, chunks), whole_results(call)).items():
            assert error <= 1e-12, result


def test_hidden_blocks_are_no_part_of_the_graph() -> None:
    from attnarray.distributed import dask as blocked

    call = make_call("plain", "float64")
    counts = []
    for options in ({}, {"is_causal": True}, {"window": (2, 0)}):
        out = blocked.scaled_dot_product_attention(**dask_arrays(call), **options)
        counts.append(sum("partial" in str(key) for key in out.__dask_graph__().to_dict()))
    assert counts == [4 * 5 * 7, 4 * (2 + 3 + 4 + 5 + 6), 4 * (2 + 3 + 2 + 2 + 2)]  # by hand: blocks of 5 and of 4


def test_the_same_call_has_the_same_names() -> None:
    from attnarray.distributed import dask as blocked

    def name(**options: Any) -> str:
        call = make_call("plain", "float64")
        return str(blocked.scaled_dot_product_attention(**dask_arrays(call), **options).name)

    names = [name(), name(is_causal=True), name(q_offset=1), name(kv_lengths=3), name(sinks=np.zeros(4))]
    assert len(set(names)) == len(names)
    assert names[0] == name()


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "heads that cut groups": (
        {"query": (1, 1, 5, -1)},
        ValueError,
        r"chunks \(1, 1, 1, 1\) of the heads, expected \(2, 2\)",
    ),
    "heads of the keys": ({"key": (1, 2, 4, -1)}, ValueError, "`key` has chunks .* but `value` has"),
    "keys and values": ({"value": (1, 1, 3, -1)}, ValueError, "`key` has chunks .* but `value` has"),
    "batch": ({"query": (2, 2, 5, -1)}, ValueError, r"`key` has chunks \(1, 1\) of the batch but `query` has \(2,\)"),
    "head dim": ({"query": (1, 2, 5, 2)}, ValueError, r"`query` is divided along its last axis .* query.rechunk"),
}


@pytest.mark.parametrize("what", BAD)
def test_chunks_that_do_not_fit(what: str) -> None:
    from attnarray.distributed import dask as blocked
    from tests.support.dask_calls import CHUNKS

    changed, error, text = BAD[what]
    with pytest.raises(error, match=text):
        blocked.scaled_dot_product_attention(**dask_arrays(make_call("plain", "float64"), {**CHUNKS, **changed}))


def test_wrong_arguments() -> None:
    import dask.array as da

    from attnarray.distributed import dask as blocked

    x = da.ones((1, 2, 4, 3), chunks=2).rechunk({3: -1})
    attention = blocked.scaled_dot_product_attention
    with pytest.raises(TypeError, match=r"`key` is an array .*, expected a Dask array .*from_array"):
        attention(x, np.ones((1, 2, 4, 3)), x)
    with pytest.raises(ValueError, match=r"`query` has shape \(2, 4, 3\), expected four axes"):
        attention(x[0], x[0], x[0])
    with pytest.raises(ValueError, match="chunks of unknown size"):
        attention(x[x[:, 0, 0, 0] > 0], x, x)
    with pytest.raises(ValueError, match="holds Dense"):
        attention(x, x, x, aa.Dense(np.ones((4, 4), bool)) | aa.Causal())
    with pytest.raises(ValueError, match=r"`Documents.ids_k` has shape \(1, 3\)"):
        attention(x, x, x, aa.Documents(np.zeros((1, 4), int), np.zeros((1, 3), int)))
    with pytest.raises(ValueError, match="`layout` is 'BTHD', expected one of 'BHTD'"):
        attention(x, x, x, layout="BTHD")
    with pytest.raises(ValueError, match="`bias` has shape"):
        attention(x, x, x, bias=da.ones((5, 4)))
    with pytest.raises(TypeError, match="different dtypes"):
        attention(x, x.astype("float32"), x)
    with pytest.raises(TypeError, match="no option `windows`"):
        attention(x, x, x, windows=3)
    out, ctx = blocked.scaled_dot_product_attention_fwd(x, x, x)
    with pytest.raises(TypeError, match="`dout` is an array"):
        blocked.scaled_dot_product_attention_bwd(np.ones(out.shape), ctx)
    with pytest.raises(ValueError, match="`dout` has shape"):
        blocked.scaled_dot_product_attention_bwd(out[:, :1], ctx)
    with pytest.raises(TypeError, match="expected the DaskAttentionContext"):
        blocked.scaled_dot_product_attention_bwd(out, None)


def test_empty_arrays() -> None:
    import dask.array as da

    from attnarray.distributed import dask as blocked

    q, k, v = (da.ones((B, 2, n, f)) for n, f in ((T, D), (0, D), (0, DV)))
    assert not blocked.scaled_dot_product_attention(q, k, v).compute().any()
    q, k, v = (da.ones((B, 2, n, f)) for n, f in ((0, D), (S, D), (S, DV)))
    assert blocked.scaled_dot_product_attention(q, k, v).compute().shape == (B, 2, 0, DV)

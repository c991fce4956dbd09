"""Multi-head attention of Dask arrays equals that of whole arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from tests.support.libraries import assert_close

pytestmark = pytest.mark.distributed

B, T, S, E, EK, EV, H, HKV = 2, 11, 13, 6, 5, 7, 4, 2
CASES: dict[str, dict[str, Any]] = {
    "self": {},
    "causal, rotary": {"is_causal": True, "rotary": aa.Rotary()},
    "rotary, offset of each batch": {"is_causal": True, "rotary": aa.Rotary(), "q_offset": np.array([2, 5])},
    "another sequence": {"key": (B, S, EK)},
    "two other sequences": {"key": (B, S, EK), "value": (B, S, EV), "softcap": 3.0},
    "dropout": {"dropout_p": 0.2, "rng": 3, "window": (4, 1)},
    "bias": {"bias": (H, T, T)},
    "scale": {"scale": 0.3, "kv_lengths": np.array([4, 9])},
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    dask = pytest.importorskip("dask")
    with dask.config.set(scheduler="threads", num_workers=2):
        yield


def arguments(name: str, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays, and options with the parameters."""
    rng, options = np.random.default_rng(0), dict(CASES[name])
    shapes = {"query": (B, T, E), **{n: options.pop(n) for n in ("key", "value", "bias") if n in options}}
    arrays = {n: rng.standard_normal(shape).astype(dtype) for n, shape in shapes.items()}
    key = arrays.get("key", arrays["query"])
    inputs = {"query": E, "key": key.shape[2], "value": arrays.get("value", key).shape[2], "out": H * 3}
    rows = {"query": H * 4, "key": HKV * 4, "value": HKV * 3, "out": 9}
    params = {
        part: {"weight": rng.standard_normal((rows[part], inputs[part])).astype(dtype)}
        | ({} if part == "key" else {"bias": rng.standard_normal(rows[part]).astype(dtype)})
        for part in rows
    }
    return arrays, {**options, "params": params, "num_heads": H, "num_kv_heads": HKV}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 5e-6)])  # roundings of sums
@pytest.mark.parametrize("name", CASES)
def test_blocks_equal_the_whole(name: str, dtype: str, tolerance: float) -> None:
    import dask
    import dask.array as da

    from attnarray.distributed import dask as blocked

    arrays, options = arguments(name, dtype)
    out, ctx = aa.multi_head_attention_fwd(**arrays, **options)
    dout = np.cos(out)
    expected = aa.multi_head_attention_bwd(dout, ctx)
    lazy = {n: da.from_array(x, chunks=(1, 4, -1) if x.shape[0] == B else 3) for n, x in arrays.items()}
    found, blocked_ctx = blocked.multi_head_attention_fwd(**lazy, **options)
    grads = blocked.multi_head_attention_bwd(da.from_array(dout, chunks=5), blocked_ctx)
    assert found.dtype == dtype
    given = {path: leaf for path, leaf in tree.flatten({"out": found, **grads._asdict()}) if leaf is not None}
    computed = dask.compute(given)[0]
    wanted = dict(tree.flatten({"out": out, **expected._asdict()}))
    assert computed.keys() == wanted.keys()
    for path, value in wanted.items():
        assert computed[path].dtype == value.dtype
        assert_close(computed[path].reshape(value.shape), value, tolerance, tree.format_path(path))


def test_wrong_arguments() -> None:
    import dask.array as da

    from attnarray.distributed import dask as blocked

    arrays, options = arguments("self", "float64")
    x = da.from_array(arrays["query"], chunks=(1, 4, -1))
    with pytest.raises(TypeError, match=r"`query` is an array .*, expected a Dask array \(B, T, E\)"):
        blocked.multi_head_attention(arrays["query"], **options)
    with pytest.raises(ValueError, match="expected three axes"):
        blocked.multi_head_attention(x[0], **options)
    with pytest.raises(ValueError, match=r"divided along its last axis into \(3, 3\)"):
        blocked.multi_head_attention(x.rechunk({2: 3}), **options)
    with pytest.raises(ValueError, match=r"must divide"):
        blocked.multi_head_attention(x, **{**options, "num_kv_heads": 3})
    with pytest.raises(TypeError, match="`rotary` is 3"):
        blocked.multi_head_attention(x, **options, rotary=3)
    out, ctx = blocked.multi_head_attention_fwd(x, **options)
    with pytest.raises(TypeError, match="`dout` is an array"):
        blocked.multi_head_attention_bwd(np.ones(out.shape), ctx)
    with pytest.raises(ValueError, match="`dout` has shape"):
        blocked.multi_head_attention_bwd(out[:, :3], ctx)
    with pytest.raises(TypeError, match="expected the DaskMultiHeadContext"):
        blocked.multi_head_attention_bwd(out, None)

"""Rotations, sinusoids, linear biases and buckets: equal to PyTorch code of the papers, and their properties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.kernels.numba.rows import rotary as row_rotary
from tests.support.frozen import Frozen, frozen
from tests.support.libraries import assert_close
from tests.support.messages import says

# Relative to the largest entry of each array, or to 1 if all are smaller. Angles are float64 in both.
TOLERANCE = {"float64": 1e-13, "float32": 1e-6}
ANGLES = 1e-11  # cosines of angles up to 1e5, whose frequencies are rounded differently


def of(kind: str) -> list[Any]:
    found = {name: one for name, one in frozen("positions.npz").items() if name.startswith(f"{kind}: ")}
    return [pytest.param(one, id=name) for name, one in found.items()]


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reference", of("rotary"))
def test_rotary_equals_the_paper(reference: Frozen, dtype: str, kernels: str) -> None:
    reference = reference.in_dtype(dtype)
    with aa.use_kernels(kernels):
        y, ctx = aa.rotary_fwd(reference.arrays["x"], **reference.options)
        dx = aa.rotary_bwd(reference.arrays["dout"], ctx).x
    tolerance = max(TOLERANCE[dtype], ANGLES if "offset" in reference.options else 0.0)
    assert_close(y, reference.arrays["out"], tolerance)
    assert_close(dx, reference.arrays["grad_x"], tolerance)


@pytest.mark.parametrize("reference", of("buckets"))
def test_buckets_equal_t5(reference: Frozen) -> None:
    found = aa.relative_buckets(**reference.options)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, reference.arrays["out"])


@pytest.mark.parametrize("reference", of("alibi"))
def test_alibi_equals_the_paper(reference: Frozen) -> None:
    found = aa.alibi(**reference.options, dtype="float64")
    np.testing.assert_allclose(found, reference.arrays["out"], rtol=1e-14)  # powers of powers, or powers
    assert aa.alibi(**reference.options).dtype == np.float32


@pytest.mark.parametrize("reference", of("sinusoidal"))
def test_sinusoids_equal_the_paper(reference: Frozen) -> None:
    expected = reference.arrays["out"]
    found = aa.sinusoidal(reference.arrays["positions"], 10, interleaved=False, dtype="float64")
    assert_close(found, expected, ANGLES)
    mixed = aa.sinusoidal(reference.arrays["positions"].reshape(1, 5), 10, dtype="float64")[0]
    np.testing.assert_array_equal(mixed[:, 0::2], found[:, :5])
    np.testing.assert_array_equal(mixed[:, 1::2], found[:, 5:])
    np.testing.assert_array_equal(aa.sinusoidal(4, 6), aa.sinusoidal(np.arange(4), 6))
    assert aa.sinusoidal(4, 6).dtype == np.float32


RNG = np.random.default_rng(0)


@pytest.mark.parametrize("options", [{}, {"interleaved": True}, {"scaling": "linear", "factor": 3.0},
                                     {"scaling": "ntk", "factor": 8.0}, {"base": 50.0}])  # fmt: skip
def test_dot_products_depend_on_distances_only(options: dict[str, Any]) -> None:
    q, k = RNG.standard_normal((2, 6, 10))
    near = aa.rotary(q, **options) @ aa.rotary(k, **options).T
    far = aa.rotary(q, offset=1000, **options) @ aa.rotary(k, offset=1000, **options).T
    assert_close(far, near, ANGLES)
    np.testing.assert_allclose(np.linalg.norm(aa.rotary(q, **options), axis=-1), np.linalg.norm(q, axis=-1))


def test_linear_scaling_is_a_shorter_text_and_ntk_a_larger_base() -> None:
    x = RNG.standard_normal((9, 6))
    stretched = aa.rotary(x, scaling="linear", factor=4.0)
    np.testing.assert_allclose(stretched[::4], aa.rotary(x[::4]))
    ntk = aa.rotary(x, scaling="ntk", factor=4.0)
    np.testing.assert_allclose(ntk, aa.rotary(x, base=1e4 * 4.0 ** (6 / 4)))
    slowest = [0, 2, 5]  # R / 2 - 1 and R - 1 are its pair: it is stretched as by linear scaling; the first one is not
    np.testing.assert_allclose(ntk[:, slowest[1:]], stretched[:, slowest[1:]])
    assert abs(ntk[5, 0] - stretched[5, 0]) > 0.1
    np.testing.assert_array_equal(aa.rotary(x[:, :2], scaling="ntk", factor=4.0), aa.rotary(x[:, :2]))


@pytest.mark.parametrize("interleaved", [False, True])
def test_positions_may_be_given_in_any_order_and_for_each_batch(interleaved: bool) -> None:
    x = RNG.standard_normal((2, 3, 7, 8)).astype(np.float32)
    whole = aa.rotary(x, offset=4, interleaved=interleaved)
    np.testing.assert_array_equal(aa.rotary(x, np.arange(4, 11), interleaved=interleaved), whole)
    order = np.stack([RNG.permutation(7) for _ in range(2)])  # (B, T)
    shuffled = np.take_along_axis(x, order[:, None, :, None], 2)
    found = aa.rotary(shuffled, 4 + order[:, None, :], interleaved=interleaved)
    np.testing.assert_array_equal(found, np.take_along_axis(whole, order[:, None, :, None], 2))
    for told in ({"positions": np.arange(4, 11)}, {"offset": 4}):
        swapped = aa.rotary(np.swapaxes(x, 1, 2), **told, interleaved=interleaved, layout="BTHD")
        np.testing.assert_array_equal(np.swapaxes(swapped, 1, 2), whole)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_cache_of_keys_grows_by_one(interleaved: bool) -> None:
    """The cached table of the kernel grows, too, without recomputation at every step."""
    row_rotary._kept.cache_clear()
    k = RNG.standard_normal((2, 40, 8))
    whole = aa.rotary(k, interleaved=interleaved)
    steps = [aa.rotary(k[:, t : t + 1], offset=t, interleaved=interleaved) for t in range(40)]
    np.testing.assert_array_equal(np.concatenate(steps, axis=1), whole)
    assert row_rotary._kept.cache_info().misses <= math.ceil(math.log2(40)) + 2  # that of the whole was made first


def test_large_positions_are_exact() -> None:
    """In float32 an angle of a million would be off by 0.06."""
    x = np.tile(np.array([1.0, 0.0], np.float32), (3, 1))
    expected = np.stack([np.cos(10**6 + np.arange(3.0)), np.sin(10**6 + np.arange(3.0))], -1)
    for kernels in ("reference", "auto"):
        with aa.use_kernels(kernels):
            assert_close(aa.rotary(x, offset=10**6), expected, 1e-7)
    assert_close(aa.sinusoidal(np.array([10**6]), 2)[0], expected[0, ::-1], 1e-7)


def test_a_table_that_is_too_large_to_cache_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.standard_normal((2, 9, 8))
    expected = aa.rotary(x, offset=3)
    monkeypatch.setattr(row_rotary, "KEPT", 0)
    row_rotary._kept.cache_clear()
    np.testing.assert_array_equal(aa.rotary(x, offset=3), expected)
    assert row_rotary._kept.cache_info().currsize == 0
    np.testing.assert_allclose(aa.rotary(aa.rotary(x), offset=-3)[:, 3:4], aa.rotary(x)[:, 3:4], atol=1e-12)


@pytest.mark.parametrize("interleaved", [False, True])
def test_specials_stay_in_their_pair(interleaved: bool) -> None:
    x = RNG.standard_normal((4, 20))
    x[1, 3], x[2, 15], x[3, 19] = np.nan, np.inf, -np.inf
    found = []
    for kernels in ("reference", "auto"):
        with np.errstate(all="ignore"), aa.use_kernels(kernels):
            found.append(aa.rotary(x, dims=18, interleaved=interleaved, offset=1))
    np.testing.assert_allclose(found[1], found[0], atol=1e-15)
    assert np.sum(~np.isfinite(found[0])) == 5  # two of each pair, and the feature that is not rotated


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_features_are_rotated_in_float32(dtype: str) -> None:
    x = aa.asarray(RNG.standard_normal((3, 70, 8)), dtype)
    expected = aa.rotary(x.astype(np.float32)).astype(x.dtype)
    for kernels in ("reference", "auto"):
        with aa.use_kernels(kernels):
            y = aa.rotary(x)
        assert y.dtype == x.dtype
        difference = np.abs(y.astype(np.float32) - expected.astype(np.float32))
        assert np.max(difference) <= np.max(np.abs(x.astype(np.float32))) * 2.0**-7  # the two may round apart


def test_empty_sizes() -> None:
    for shape in ((0, 4), (3, 0, 4), (0, 2, 4)):
        assert aa.rotary(np.ones(shape)).shape == shape
    assert aa.sinusoidal(0, 4).shape == (0, 4)
    assert aa.alibi(2, 0, 3).shape == (2, 0, 3)
    assert aa.relative_buckets(3, 0).shape == (3, 0)


def test_one_row_of_alibi_is_equivalent_if_attention_is_causal() -> None:
    q, k, v = RNG.standard_normal((3, 2, 6, 11, 4))
    full = aa.scaled_dot_product_attention(q[..., 3:, :], k, v, is_causal=True, q_offset=3,
                                           bias=aa.alibi(6, 8, 11, q_offset=3, dtype="float64"))  # fmt: skip
    row = aa.alibi(6, 8, 11, q_offset=3, causal=True, dtype="float64")
    assert row.shape == (6, 1, 11)
    found = aa.scaled_dot_product_attention(q[..., 3:, :], k, v, is_causal=True, q_offset=3, bias=row)
    assert_close(found, full, 1e-13)


def test_slopes_are_a_geometric_sequence_from_their_ratio() -> None:
    for heads in (1, 2, 4, 8, 16):
        slopes = aa.alibi_slopes(heads, dtype="float64")
        np.testing.assert_allclose(slopes[1:] / slopes[:-1], slopes[0])
        assert slopes[-1] == 2.0**-8
    assert len(set(aa.alibi_slopes(12).tolist())) == 12


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "max_distance"), [(4, 3), (8, 5), (32, 128), (200, 10_000), (6, 10**6)])
def test_buckets_by_their_definition(buckets: int, max_distance: int, bidirectional: bool) -> None:
    """In exact integers: bucket(n) >= b where n^c E^(b - E) ... is not rounded by any logarithm."""
    each = buckets // 2 if bidirectional else buckets
    exact = each // 2
    if max_distance <= exact:
        pytest.skip("fewer distances than exact buckets")
    count = min(2 * max_distance, 3000)
    found = aa.relative_buckets(1, count, q_offset=count - 1, buckets=buckets, max_distance=max_distance,
                                bidirectional=bidirectional)[0, ::-1]  # fmt: skip
    coarse = each - exact
    for n in {*range(min(count, 300)), *range(0, count, 37)}:
        if n < exact:
            assert found[n] == n
            continue
        b = int(found[n]) - exact
        assert n**coarse >= exact ** (coarse - b) * max_distance**b  # its bucket begins at or before n ...
        assert b == coarse - 1 or n**coarse < exact ** (coarse - b - 1) * max_distance ** (b + 1)  # and ends after it


def test_keys_after_a_query_have_their_own_buckets() -> None:
    found = aa.relative_buckets(50, 50)
    np.testing.assert_array_equal(found.T[np.triu_indices(50, 1)] + 16, found[np.triu_indices(50, 1)])
    assert np.all(aa.relative_buckets(5, 5, bidirectional=False)[np.triu_indices(5)] == 0)


X = np.ones((2, 3, 4))
BAD: dict[str, tuple[type[Exception], Any, str]] = {
    "odd": (ValueError, lambda: aa.rotary(X[..., :3]), "`x` has 3 features, expected an even number: they are rotated"),
    "odd dims": (
        ValueError,
        lambda: aa.rotary(X, dims=3),
        "`dims` is 3, expected an even number: features are rotated",
    ),
    "many dims": (ValueError, lambda: aa.rotary(X, dims=6), "`dims` is 6, but `x` has only 4 features."),
    "no dims": (ValueError, lambda: aa.rotary(X, dims=0), "`dims` is 0, expected an integer >= 1: features"),
    "one axis": (ValueError, lambda: aa.rotary(X[0, 0]), "`x` has shape (4,), expected at least two axes"),
    "two axes": (ValueError, lambda: aa.rotary(X[0], layout="BTHD"), "expected at least three axes: (*batch, T, H, D)"),
    "layout": (ValueError, lambda: aa.rotary(X, layout="HTD"), "`layout` is 'HTD', expected one of 'BHTD', 'BTHD'."),
    "integers": (TypeError, lambda: aa.rotary(np.ones((3, 4), int)), "`x` has dtype int64, expected one of"),
    "positions": (ValueError, lambda: aa.rotary(X, np.arange(4)), "`positions` has shape (4,), which does not broad"),
    "broken": (TypeError, lambda: aa.rotary(X, np.arange(3.0)), "`positions` has dtype float64, expected an integer"),
    "list": (TypeError, lambda: aa.rotary(X, [0, 1, 2]), "`positions` has type list, expected an array"),
    "both": (ValueError, lambda: aa.rotary(X, np.arange(3), offset=2), "`positions` and `offset` are both given"),
    "offset": (ValueError, lambda: aa.rotary(X, offset=0.5), "`offset` is 0.5, expected an integer"),
    "base": (ValueError, lambda: aa.rotary(X, base=0.0), "`base` is 0.0, expected a finite number above 0."),
    "factor": (ValueError, lambda: aa.rotary(X, scaling="ntk", factor=-1), "`factor` is -1, expected a finite number"),
    "scaling": (
        ValueError,
        lambda: aa.rotary(X, scaling="yarn"),
        "`scaling` is 'yarn', expected None, 'linear'",
    ),
    "dout": (ValueError, lambda: aa.rotary_bwd(X[0], aa.rotary_fwd(X)[1]), "`dout` has shape (3, 4), expected (2, 3"),
    "sinusoids": (ValueError, lambda: aa.sinusoidal(3, 5), "`dim` is 5, expected an even number: a sine and a cosine"),
    "negative": (ValueError, lambda: aa.sinusoidal(-3, 4), "`positions` is -3, expected an integer >= 0: how many"),
    "text": (TypeError, lambda: aa.sinusoidal("3", 4), "`positions` has type str, expected an integer or an array"),
    "flags": (TypeError, lambda: aa.sinusoidal(np.ones(3, bool), 4), "`positions` has dtype bool, expected integers"),
    "dtype": (ValueError, lambda: aa.sinusoidal(3, 4, dtype="real"), "'real' is not a dtype"),
    "heads": (ValueError, lambda: aa.alibi(0, 3, 3), "`num_heads` is 0, expected an integer"),
    "queries": (ValueError, lambda: aa.alibi(2, -1, 3), "`queries` is -1, expected an integer"),
    "buckets": (ValueError, lambda: aa.relative_buckets(3, 3, buckets=7), "`buckets` is 7, expected an even number"),
    "few": (ValueError, lambda: aa.relative_buckets(3, 3, buckets=2), "`buckets` is 2, expected an integer >= 4: how"),
    "near": (
        ValueError,
        lambda: aa.relative_buckets(3, 3, max_distance=8),
        "`max_distance` is 8, expected more than 8",
    ),
}


@pytest.mark.parametrize(("error", "call", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_gets_one_clear_error(error: type[Exception], call: Any, expected: str) -> None:
    if expected.startswith("'"):
        with pytest.raises(error, match=expected):
            call()
    else:
        says(error, expected, call)

"""The array library is that of the arrays; `use_backend` decides only where new ones are made."""

from __future__ import annotations

import contextvars
import sys
import threading
from typing import Any

import array_api_strict
import ml_dtypes
import numpy as np
import pytest

import attnarray as aa
from attnarray import backend
from attnarray.backend import (
    accumulator_dtype,
    creation_namespace,
    device_of,
    dtype_name,
    index_dtype,
    library_name,
    scatter_add,
    supported_backend_names,
)
from tests.support.libraries import NUMPY, STATUSES, STRICT, Library, assert_trees_close

X = np.array([[1.5, -2.0, 0.25], [3.0, 0.0, -1.0]])


def test_namespace_of_numpy_is_numpy_itself() -> None:
    assert aa.namespace_of(X) is np
    assert aa.namespace_of(None, X, None) is np
    assert aa.namespace_of(np.float32(1.0), X.view(np.memmap)) is np
    assert aa.namespace_of() is aa.namespace_of(None) is np


def test_namespace_of_every_library(library: Library) -> None:
    x = library.array(X)
    xp = aa.namespace_of(None, x, x)
    assert library_name(x) == library.name
    assert library.name in xp.__name__
    assert float(xp.sum(xp.matmul(x, x.mT))) == np.sum(X @ X.T)


@pytest.mark.peers
def test_subclasses_belong_to_the_library_that_they_come_from() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(2).as_subclass(type("Tensor", (torch.Tensor,), {"__module__": "somewhere.else"}))
    assert library_name(tensor) == "torch"
    assert aa.namespace_of(tensor, torch.ones(2)).sum(tensor) == 2.0


def test_arrays_of_two_libraries_have_no_namespace() -> None:
    with pytest.raises(
        TypeError, match=r"different libraries: array_api_strict, numpy\. Bring them to one library first"
    ):
        aa.namespace_of(X, STRICT.array(X))
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="different libraries: array_api_strict, torch"):
        aa.namespace_of(torch.ones(2), None, STRICT.array(X))


@pytest.mark.parametrize(
    ("value", "kind"), [([1.0], "list"), (1.0, "float"), ("x", "str"), ({}, "dict"), (np, "module")]
)
def test_what_is_no_array_has_no_namespace(value: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"Expected arrays, but got {kind}. Convert it first: attnarray.asarray\(x\)"):
        aa.namespace_of(X, value)


def test_dtype_names_are_plain() -> None:
    named = {
        "float32": [np.float32, np.dtype("f4"), array_api_strict.float32, "float32"],
        "float64": [np.float64, array_api_strict.float64],
        "int64": [np.int64, np.dtype("i8"), array_api_strict.int64],
        "bool": [np.bool_, np.dtype(bool), array_api_strict.bool],
        "bfloat16": [np.dtype(ml_dtypes.bfloat16), ml_dtypes.bfloat16],
    }
    for name, dtypes in named.items():
        assert {dtype_name(dtype) for dtype in dtypes} == {name}


def test_dtype_names_of_every_library(library: Library) -> None:
    xp = aa.namespace_of(library.array(X))
    for name in (*library.dtypes, "bool", "int32", "int64"):
        assert dtype_name(library.array(np.zeros(2), name).dtype) == name
    for name, wide in (
        ("float64", xp.float64),
        ("float32", xp.float32),
        ("float16", xp.float32),
        ("bfloat16", xp.float32),
    ):
        if name in library.dtypes:
            assert accumulator_dtype(xp, library.array(X, name).dtype) == wide
    assert dtype_name(index_dtype(xp, library.array(X))) == "int64"


def test_use_backend_nests_and_ends() -> None:
    assert creation_namespace() is np
    with aa.use_backend("array_api_strict") as strict:
        assert strict is array_api_strict
        assert library_name(aa.asarray([1.0])) == "array_api_strict"
        with aa.use_backend("numpy") as xp:
            assert xp is np
            assert type(aa.asarray([1.0])) is np.ndarray
        assert creation_namespace() is array_api_strict
        with pytest.raises(ZeroDivisionError), aa.use_backend("numpy"):
            1 / 0  # noqa: B018
        assert library_name(aa.Philox(0).uniform((2,))) == "array_api_strict"
    assert creation_namespace() is np


def test_use_backend_moves_nothing_that_exists() -> None:
    with aa.use_backend("array_api_strict"):
        assert type(aa.softmax(X)) is np.ndarray
    assert library_name(aa.softmax(STRICT.array(X))) == "array_api_strict"


def test_use_backend_is_the_threads_own() -> None:
    found: dict[str, str] = {}

    def look(name: str) -> None:
        found[name] = library_name(aa.asarray([1.0]))

    with aa.use_backend("array_api_strict"):
        alone = threading.Thread(target=look, args=["alone"])
        copied = threading.Thread(target=contextvars.copy_context().run, args=[look, "copied"])
        for thread in (alone, copied):
            thread.start()
            thread.join()
    assert found == {"alone": "numpy", "copied": "array_api_strict"}


def test_unknown_and_missing_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"Unknown backend 'tf'. Known backends: numpy, cupy, torch, jax, array_api_str"
    ):
        aa.use_backend("tf").__enter__()
    with pytest.raises(ValueError, match="Unknown backend None"):
        aa.use_backend(None).__enter__()
    monkeypatch.setitem(sys.modules, "jax.numpy", None)
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", None)
    with pytest.raises(RuntimeError, match=r"Backend 'jax' cannot be used here: .*jax"):
        aa.use_backend("jax").__enter__()
    with pytest.raises(
        RuntimeError, match=r"'cupy' cannot be used here: .*pip install 'attnarray\[cuda12\]' or 'attnarray"
    ):
        aa.use_backend("cupy").__enter__()
    assert creation_namespace() is np


def test_a_backend_without_a_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        CUDARuntimeError = type("CUDARuntimeError", (RuntimeError,), {})

        @staticmethod
        def getDeviceCount() -> int:
            raise Runtime.CUDARuntimeError("no driver")

    cupy = type("cupy", (), {"cuda": type("cuda", (), {"runtime": Runtime}), "__version__": "14.0"})
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", cupy)
    status = next(status for status in aa.available_backends() if status.name == "cupy")
    assert status == ("cupy", False, "14.0", "", "CuPy is installed but no GPU can be used (no driver)")
    monkeypatch.setattr(Runtime, "getDeviceCount", staticmethod(lambda: 0))
    with pytest.raises(RuntimeError, match="'cupy' cannot be used here: no CUDA device was found"):
        aa.use_backend("cupy").__enter__()


def test_available_backends_lists_all_with_reasons() -> None:
    statuses = {status.name: status for status in aa.available_backends()}
    assert list(statuses) == ["numpy", "cupy", "torch", "jax", "array_api_strict"]
    assert statuses["numpy"] == ("numpy", True, np.__version__, "CPU", "")
    for status in statuses.values():
        assert bool(status.reason) != status.available
        assert status.available == bool(status.version) or status.name == "cupy"
    assert supported_backend_names(["numpy", "array_api_strict"]) == ["numpy", "array_api_strict"]
    assert set(supported_backend_names()) == {status.name for status in STATUSES if status.available}


def test_asarray_takes_lists_numbers_and_arrays_of_every_library(library: Library) -> None:
    with aa.use_backend(library.name):
        for data in (X.tolist(), X, STRICT.array(X), library.array(X), tuple(map(tuple, X))):
            made = aa.asarray(data)
            assert library_name(made) == library.name
            assert dtype_name(made.dtype) == "float64"
            np.testing.assert_array_equal(aa.to_numpy(made), X)
        assert aa.asarray(2.5).shape == ()
        assert tuple(aa.asarray([]).shape) == (0,)
        assert dtype_name(aa.asarray([True]).dtype) == "bool"
        assert dtype_name(aa.asarray([1, 2], "float32").dtype) == "float32"
        given = aa.asarray([1.0])
        assert aa.asarray(given) is given


def test_asarray_on_a_device() -> None:
    device = STRICT.device
    with aa.use_backend("array_api_strict"):
        for data in ([1.0, 2.0], X, array_api_strict.asarray(X), STRICT.array(X)):
            made = aa.asarray(data, "float32", device=device)
            assert device_of(made) == device
            assert made.dtype == array_api_strict.float32
        assert device_of(aa.asarray(STRICT.array(X))) == device
    assert device_of(aa.asarray(STRICT.array(X))) == "cpu"
    torch = pytest.importorskip("torch")
    with aa.use_backend("torch"):
        assert aa.asarray(X, device="meta").device.type == "meta"
        assert aa.asarray(torch.ones(2), device="cpu").device.type == "cpu"


def test_asarray_refuses_unknown_dtypes() -> None:
    with pytest.raises(
        ValueError, match=r"'flot32' is not a dtype of numpy. Use a name such as 'float32' or 'float64'"
    ):
        aa.asarray([1.0], "flot32")
    with pytest.raises(ValueError, match="'sin' is not a dtype of numpy"):
        aa.asarray([1.0], "sin")
    with aa.use_backend("array_api_strict"), pytest.raises(ValueError, match="'bfloat16' is not a dtype of array_api"):
        aa.asarray([1.0], "bfloat16")
    assert aa.asarray([1.0], np.float32).dtype == np.float32
    assert aa.asarray([1.0], np.dtype("f2")).dtype == np.float16
    with (
        aa.use_backend("array_api_strict"),
        pytest.raises(ValueError, match="'float16' is not a dtype of array_api_str"),
    ):
        aa.asarray([1.0], "float16")


def test_bfloat16_goes_both_ways() -> None:
    made = aa.asarray([1.5, 2.0], "bfloat16")
    assert made.dtype == ml_dtypes.bfloat16
    torch = pytest.importorskip("torch")
    with aa.use_backend("torch"):
        tensor = aa.asarray([1.5, 2.0], "bfloat16")
        again = aa.asarray(made)
    assert again.dtype == tensor.dtype == torch.bfloat16
    assert torch.equal(again, tensor)
    assert aa.to_numpy(tensor).dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(aa.to_numpy(tensor), made)
    np.testing.assert_array_equal(aa.asarray(tensor), made)


def test_to_numpy_of_every_library(library: Library) -> None:
    found = aa.to_numpy(library.array(X, "float32"))
    assert type(found) is np.ndarray
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, X)
    assert aa.to_numpy(X) is X
    assert aa.to_numpy([[1, 2]]).tolist() == [[1, 2]]


@pytest.mark.peers
def test_to_numpy_of_a_tensor_with_gradients() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(aa.to_numpy(torch.nn.Parameter(torch.ones(2))), [1.0, 1.0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_scatter_add_sums_repeated_rows(library: Library, dtype: str) -> None:
    values = np.arange(12.0).reshape(6, 2)
    rows = np.array([4, 0, 4, 1, 0, 4])
    expected = np.zeros((5, 2))
    for row, value in zip(rows, values, strict=True):
        expected[row] += value
    found = scatter_add(library.array(values, dtype), library.array(rows), 5)
    assert dtype_name(found.dtype) == dtype
    assert device_of(found) == device_of(library.array(values))
    np.testing.assert_array_equal(aa.to_numpy(found), expected)
    nothing = scatter_add(library.array(values[:0]), library.array(rows[:0]), 3)
    np.testing.assert_array_equal(aa.to_numpy(nothing), np.zeros((3, 2)))


@pytest.mark.peers
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_attention_on_the_arrays_of_frameworks(name: str) -> None:
    pytest.importorskip(name)
    rng = np.random.default_rng(0)
    shapes = {"query": (2, 6, 5, 4), "key": (2, 3, 7, 4), "value": (2, 3, 7, 8), "bias": (6, 1, 7), "sinks": (6,)}
    given = {key: rng.standard_normal(shape) for key, shape in shapes.items()}
    options = {"is_causal": True, "q_offset": 2, "window": (4, 0), "kv_lengths": [7, 3], "softcap": 2.0}
    dout = rng.standard_normal((2, 6, 5, 8))
    library = Library(name)
    found, pullback = aa.vjp(aa.scaled_dot_product_attention, **library.moved(given), **options)
    expected, expected_pullback = aa.vjp(aa.scaled_dot_product_attention, **given, **options)
    grads = pullback(library.array(dout))
    assert {library_name(array) for array in (found, *grads)} == {name}
    assert_trees_close((found, grads), (expected, expected_pullback(dout)), 1e-13)  # a few dozen roundings


def test_the_library_of_a_type_is_looked_up_once() -> None:
    backend.type_library.cache_clear()
    for _ in range(3):
        library_name(NUMPY.array(X))
    assert backend.type_library.cache_info().misses == 1

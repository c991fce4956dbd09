"""Convolution and recurrence against outputs and gradients frozen from PyTorch (tests/references/make_sequences.py)."""

from __future__ import annotations

import importlib
import json
import math
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from tests.support import paths
from tests.support.libraries import assert_trees_close

# Relative to the largest entry of each array, or to 1 if all are smaller.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5}  # PyTorch's own float32 is off by up to 4e-7 here
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Reference(NamedTuple):
    """One frozen configuration: the function, its options, and all arrays by name."""

    function: str
    options: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def expected(self) -> dict[str, np.ndarray]:
        return {n: a for n, a in self.arrays.items() if n in ("out", "h", "c") or n.startswith("grad_")}

    def calls(self, dtype: str) -> list[tuple[dict[str, Any], tuple[np.ndarray, ...]]]:
        """The arguments and the cotangents of each direction."""
        arrays = {n: a.astype(dtype) if a.dtype == np.float64 else a for n, a in self.arrays.items()}
        if self.function.startswith("conv"):
            return [({n: arrays[n] for n in ("x", "weight", "bias") if n in arrays} | self.options, arrays["dout"])]
        directions, hidden = len(arrays["weight_ih"]), arrays["weight_hh"].shape[-1]
        mask = np.arange(arrays["x"].shape[-2]) < arrays["lengths"][:, None] if "lengths" in arrays else None
        found = []
        for d in range(directions):
            given = {n: arrays[n][d] for n in (*PARAMETERS, "h0", "c0") if n in arrays}
            dout = arrays["dout"][..., d * hidden : (d + 1) * hidden]
            dstates = [arrays[n][d] for n in ("dh", "dc") if n in arrays]
            found.append(
                ({"x": arrays["x"], **given, "mask": mask, "reverse": d == 1, **self.options}, (dout, *dstates))
            )
        return found

    def merged(self, results: list[Any], gradients: list[Any]) -> dict[str, np.ndarray]:
        """The results of all directions in the form of the file."""
        named = [{f"grad_{n}": g for n, g in grads._asdict().items() if g is not None} for grads in gradients]
        if self.function.startswith("conv"):
            return {"out": results[0], **named[0]}
        each = [{**result._asdict(), **grads} for result, grads in zip(results, named, strict=True)]
        found = {n: np.stack([entry[n] for entry in each]) for n in each[0]}
        found["out"] = np.concatenate([result.out for result in results], axis=-1)
        return {**found, "grad_x": np.sum(found["grad_x"], axis=0)}


def _load() -> dict[str, Reference]:
    found = {}
    with np.load(paths.REFERENCES / "sequences.npz") as file:
        for key in file.files:
            if key.endswith("/contents"):
                contents, numbers = json.loads(str(file[key])), file[key.replace("/contents", "/numbers")]
                arrays = {}
                for name, dtype, shape in contents["arrays"]:
                    array, numbers = np.split(numbers, [math.prod(shape)])
                    arrays[name] = array.reshape(shape).astype(dtype)
                options = contents["kwargs"]
                found[key.removesuffix("/contents")] = Reference(options.pop("function"), options, arrays)
    return found


REFERENCES = _load()
each_reference = pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@each_reference
def test_outputs_and_gradients_agree_with_pytorch(reference: Reference, dtype: str) -> None:
    results, gradients = [], []
    for arguments, cotangents in reference.calls(dtype):
        result, pullback = aa.vjp(getattr(aa, reference.function), **arguments)
        results.append(result)
        gradients.append(pullback(cotangents))
    assert {leaf.dtype for _, leaf in tree.flatten([results, gradients])} == {np.dtype(dtype)}
    found, expected = reference.merged(results, gradients), reference.expected()
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert_trees_close({name: array}, {name: expected[name]}, TOLERANCE[dtype])


@each_reference
def test_naive_implementations_agree_with_pytorch(reference: Reference) -> None:
    naive = getattr(importlib.import_module(f"tests.naive.{reference.function}"), reference.function)
    outs = [naive(**arguments) for arguments, _ in reference.calls("float64")]
    out = outs[0] if reference.function.startswith("conv") else np.concatenate([out for out, *_ in outs], axis=-1)
    assert_trees_close(out, reference.arrays["out"], TOLERANCE["float64"])

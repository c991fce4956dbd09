"""Location-aware attention against the published recurrence in PyTorch (tests/references/make_location.py)."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from tests.support import paths
from tests.support.libraries import assert_close

# Relative to the largest entry of each array, or to 1 if all are smaller.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}  # PyTorch's own float32 is off by up to 2e-6 here


class Reference(NamedTuple):
    """One frozen decoder run: options of the weights, and all arrays by the paper's names."""

    options: dict[str, Any]
    arrays: dict[str, np.ndarray]


def _load() -> dict[str, Reference]:
    found = {}
    with np.load(paths.REFERENCES / "location.npz") as file:
        for key in file.files:
            if key.endswith("/contents"):
                contents, numbers = json.loads(str(file[key])), file[key.replace("/contents", "/numbers")]
                arrays = {}
                for name, dtype, shape in contents["arrays"]:
                    array, numbers = np.split(numbers, [math.prod(shape)])
                    arrays[name] = array.reshape(shape).astype(dtype)
                found[key.removesuffix("/contents")] = Reference(contents["kwargs"], arrays)
    return found


REFERENCES = _load()


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)
def test_the_published_recurrence_in_pytorch(reference: Reference, dtype: str, kernels: str) -> None:
    given = {n: a.astype(dtype) if a.dtype == np.float64 else a for n, a in reference.arrays.items()}
    layer = aa.layers.LocationAttention(8, 9, 6, *given["F"].shape, reference.options.get("cumulative", False))
    params = {
        "query": {"weight": given["W"]},
        "key": {"weight": given["V"], "bias": given["b"]},
        "score_vector": given["w"],
        "location": {"filter": given["F"], "weight": given["U"]},
    }
    options = {"scale": reference.options.get("sharpening", 1.0), "kv_lengths": given.get("lengths")}
    with aa.use_kernels(kernels):
        result, ctx = layer.fwd(params, given["s"], given["h"], previous=given.get("start"), **options)
        grads = layer.bwd(aa.LocationResult(given["dc"], given["dalpha"]), ctx)
    gradients = {
        "s": grads.query, "h": grads.key, "start": grads.previous, "W": grads.params["query"]["weight"],
        "V": grads.params["key"]["weight"], "b": grads.params["key"]["bias"], "w": grads.params["score_vector"],
        "F": grads.params["location"]["filter"], "U": grads.params["location"]["weight"],
    }  # fmt: skip
    found = {"c": result.out, "alpha": result.weights, **{f"grad_{n}": g for n, g in gradients.items()}}
    for name, array in found.items():
        if name == "grad_start" and "start" not in given:
            assert array is None
            continue
        assert array.dtype == dtype, name
        assert_close(array, given[name], TOLERANCE[dtype], name)

"""Scaled dot-product attention against outputs and gradients frozen from PyTorch (tests/references/make_sdpa.py)."""

import json
import math
from typing import NamedTuple

import numpy as np
import pytest

import attnarray
from tests.naive.attention_partial import attention_partial
from tests.naive.scaled_dot_product_attention import scaled_dot_product_attention
from tests.support import paths

# Relative to the largest entry of each array, or to 1 where all are smaller: the inputs have deviation 2.
TOLERANCE = {
    "float64": 1e-12,  # sums of at most 131 products in another order, and exp of logits up to 128: 1e-13 at most
    "float32": 1e-5,  # PyTorch's own float32 is off by up to 3e-6 here
}


class Reference(NamedTuple):
    """One configuration: the arguments of the call, the cotangents, and the expected results; arrays in float64."""

    arguments: dict
    cotangents: dict
    expected: dict

    def call(self, dtype):
        """The arguments with floating arrays in `dtype`."""
        return {name: _in_dtype(value, dtype) for name, value in self.arguments.items()}


def _in_dtype(value, dtype):
    floating = isinstance(value, np.ndarray) and value.dtype == np.float64
    return value.astype(dtype) if floating else value


def _load(path):
    with np.load(path) as file:
        names = [key.removesuffix("/contents") for key in file.files if key.endswith("/contents")]
        return {name: _unpacked(json.loads(str(file[f"{name}/contents"])), file[f"{name}/numbers"]) for name in names}


def _unpacked(contents, numbers):
    arguments = {name: tuple(v) if isinstance(v, list) else v for name, v in contents["kwargs"].items()}
    cotangents, expected = {}, {}
    for name, dtype, shape in contents["arrays"]:
        array, numbers = np.split(numbers, [math.prod(shape)])
        array = array.reshape(shape).astype(dtype)
        if name in ("dout", "dlse"):
            cotangents[name] = array
        elif name in ("out", "lse") or name.startswith("grad_"):
            expected[name] = array
        else:
            arguments[name] = array
    return Reference(arguments, cotangents, expected)


REFERENCES = _load(paths.REFERENCES / "sdpa.npz")
each_reference = pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)


def assert_close(name, found, expected, tolerance):
    assert found.shape == expected.shape, name
    scale = np.max(np.abs(expected[np.isfinite(expected)]), initial=1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=name)


@each_reference
def test_naive_implementations_agree_with_pytorch(reference):
    out, lse = attention_partial(**reference.arguments)
    assert np.array_equal(out, scaled_dot_product_attention(**reference.arguments))
    assert_close("out", out, reference.expected["out"], TOLERANCE["float64"])
    assert_close("lse", lse, reference.expected["lse"], TOLERANCE["float64"])


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@each_reference
def test_output_and_gradients_agree_with_pytorch(reference, dtype, kernels):
    cotangents = {name: _in_dtype(value, dtype) for name, value in reference.cotangents.items()}
    with attnarray.use_kernels(kernels):
        out, ctx = attnarray.scaled_dot_product_attention_fwd(**reference.call(dtype))
        grads = attnarray.scaled_dot_product_attention_bwd(cotangents.pop("dout"), ctx, **cotangents)
    expected = dict(reference.expected)
    if "grad_attn_mask" in expected:  # a float attn_mask is a bias
        expected["grad_bias"] = expected.pop("grad_attn_mask")
    assert out.dtype == dtype
    assert_close("out", out, expected["out"], TOLERANCE[dtype])
    for name in ("query", "key", "value", "bias", "sinks"):
        grad = getattr(grads, name)
        if f"grad_{name}" not in expected:
            assert grad is None, f"a gradient of {name}, which was not given"
            continue
        assert grad.dtype == dtype, name
        assert_close(name, grad, expected[f"grad_{name}"], TOLERANCE[dtype])

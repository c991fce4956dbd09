"""Scalings of rotary positions and positions of several coordinates: equal to transformers, and in layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import layers
from attnarray.ops.rotary import Rotation
from tests.support.frozen import Frozen, frozen
from tests.support.libraries import assert_close
from tests.support.messages import says

REFERENCES = frozen("rotary.npz")
SCALINGS = {name: one for name, one in REFERENCES.items() if name.startswith("scaling")}
SINGLE = 2e-6  # transformers rotates in float32
RNG = np.random.default_rng(7)
X = RNG.standard_normal((2, 5, 8))
ROPES: dict[str, Any] = {
    "dynamic": aa.DynamicNTK(2.0, 4),
    "yarn": aa.YaRN(4.0, 64, beta_fast=4.0),
    "llama3": aa.Llama3RoPE(4.0, 64),
    "longrope": aa.LongRoPE((1.0, 1.5), (2.0, 3.0), 4, 8.0),
}


def scaling(options: dict[str, Any]) -> dict[str, Any]:
    """Our options from those of transformers."""
    given = dict(options)
    kind, width, max_seq_len = given.pop("kind"), given.pop("width"), given.pop("max_seq_len")
    own = {"base": given.pop("base"), "seq_len": given.pop("seq_len")}
    own["dims"] = round(width * given.pop("partial_rotary_factor", 1.0))
    if kind == "linear":
        return {**own, "scaling": "linear", "factor": given["factor"]}
    if kind == "dynamic":
        return {**own, "scaling": aa.DynamicNTK(given["factor"], max_seq_len)}
    if "original_max_position_embeddings" in given:
        given["original_max_seq_len"] = given.pop("original_max_position_embeddings")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return {**own, "scaling": {"yarn": aa.YaRN, "llama3": aa.Llama3RoPE, "longrope": aa.LongRoPE}[kind](**given)}


@pytest.mark.parametrize("reference", SCALINGS.values(), ids=list(SCALINGS))
def test_frequencies_and_attention_factors_equal_transformers(reference: Frozen) -> None:
    options = scaling(reference.options)
    rotation: Rotation = aa.rotary_fwd(np.zeros((3, options["dims"])), **options)[1].rotation
    assert_close(np.array(rotation.frequencies), reference.arrays["frequencies"], 1e-14, "frequencies")
    assert abs(rotation.magnitude - reference.arrays["attention_factor"]) < 1e-14


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_positions_of_time_height_and_width_equal_transformers(kernels: str) -> None:
    arrays = REFERENCES["sections"].arrays
    positions = arrays["positions"][:, None].astype(np.int64)  # (B, 1, T, 3)
    with aa.use_kernels(kernels):
        found = aa.rotary(arrays["x"], positions, sections=(2, 3, 3))
    assert_close(found, arrays["out"], SINGLE, "out")


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_rows_and_columns_of_images_equal_transformers(kernels: str) -> None:
    arrays = REFERENCES["axial"].arrays
    with aa.use_kernels(kernels):
        positions = arrays["positions"].astype(np.int64)
        found = aa.rotary(arrays["x"], positions, sections=(4, 4), axial=True, layout="BTHD")
    assert_close(found, arrays["out"], SINGLE, "out")


@pytest.mark.parametrize("name", ROPES)
def test_layers_rotate_queries_and_keys_alike(name: str) -> None:
    """Scores depend on distances alone, also where queries are those of a later part, and on the factor twice."""
    layer = layers.MultiHeadAttention(8, 2, rotary=aa.Rotary(scaling=ROPES[name]))
    params = layer.init(aa.Philox(0), "float64")
    whole = layer(params, X, is_causal=True)
    assert_close(layer(params, X[:, 3:], X, is_causal=True, q_offset=3), whole[:, 3:], 1e-13, "part")
    offsets = np.array([3, 3])
    assert_close(layer(params, X[:, 3:], X, is_causal=True, q_offset=offsets), whole[:, 3:], 1e-13, "arrays")
    assert aa.gradcheck(aa.multi_head_attention, X, params=params, num_heads=2, rotary=layer.rotary)


@pytest.mark.parametrize("name", ["yarn", "llama3"])
def test_steps_equal_one_call(name: str) -> None:
    layer = layers.MultiHeadAttention(8, 2, rotary=aa.Rotary(scaling=ROPES[name]))
    params, cache, outs = layer.init(aa.Philox(0), "float64"), layer.cache(2, 5, "float64"), []
    for t in range(5):
        out, cache = layer.step(params, X[:, t : t + 1], cache)
        outs.append(out)
    assert_close(np.concatenate(outs, axis=1), layer(params, X, is_causal=True), 1e-13, "steps")


def test_positions_of_several_coordinates_in_a_layer() -> None:
    layer = layers.MultiHeadAttention(8, 2, rotary=aa.Rotary(sections=(1, 1)))
    params = layer.init(aa.Philox(0), "float64")
    text = np.stack([np.arange(5)] * 2, axis=-1)
    assert_close(layer(params, X, positions=text), layer(params, X), 1e-14, "text")
    image = RNG.integers(0, 9, (2, 5, 2))
    whole = layer(params, X, is_causal=True, positions=image)
    assert np.abs(whole - layer(params, X, is_causal=True)).max() > 1e-3
    cache, outs = layer.cache(2, 5, "float64"), []
    for t in range(5):
        out, cache = layer.step(params, X[:, t : t + 1], cache, positions=image[:, t : t + 1])
        outs.append(out)
    assert_close(np.concatenate(outs, axis=1), whole, 1e-13, "steps")


def rope(**options: Any) -> Any:
    return lambda: aa.rotary(X, **options)


BAD: dict[str, tuple[Any, str]] = {
    "factor twice": (rope(scaling=aa.YaRN(4.0, 64), factor=2.0), "`factor` is 2, but a YaRN has its own"),
    "a factor of 0": (rope(scaling=aa.DynamicNTK(0.0, 64)), "`scaling.factor` is 0.0, expected a finite"),
    "length": (rope(scaling=aa.YaRN(4.0, 0)), "`scaling.original_max_seq_len` is 0, expected an integer >= 1"),
    "betas": (rope(scaling=aa.YaRN(4.0, 64, 1.0, 2.0)), "`scaling.beta_fast` (1) is below `beta_slow` (2)"),
    "base": (rope(scaling=aa.YaRN(4.0, 64), base=1.0), "`base` is 1, expected more than 1"),
    "bands": (rope(scaling=aa.Llama3RoPE(4.0, 64, 4.0, 4.0)), "`scaling.high_freq_factor` is 4, expected more than"),
    "few factors": (rope(scaling=aa.LongRoPE((1.0,), (1.0,), 64)), "`scaling.short_factor` is (1.0,), expected"),
    "sections": (rope(sections=(1, 2)), "`sections` is (1, 2), expected a tuple of integers with the sum 4"),
    "a list": (rope(sections=[2, 2]), "`sections` is [2, 2], expected a tuple of integers"),
    "axial": (rope(axial=True), "`axial` is True, but `sections` is None"),
    "no positions": (rope(sections=(2, 2), axial=True), "`positions` is None, but `axial` needs them"),
    "scaled axes": (
        rope(sections=(2, 2), axial=True, scaling="ntk", factor=2.0), "`axial` is True with `scaling` 'ntk'",
    ),
    "coordinates": (
        rope(positions=np.zeros((5, 3), int), sections=(2, 2)),
        "`positions` has shape (5, 3), expected (*batch, T, 2)",
    ),
    "the heads of a layer": (
        lambda: layers.MultiHeadAttention(12, 2, rotary=aa.Rotary(sections=(2, 2))),
        "`sections` is (2, 2), expected a tuple of integers with the sum 3",
    ),
    "positions of a layer without rotation": (
        lambda: aa.multi_head_attention(
            X, params=layers.MultiHeadAttention(8, 2).init(aa.Philox(0), "float64"), num_heads=2,
            positions=np.arange(5),
        ),
        "`positions` are given, but they are for self-attention",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "expected"), BAD.values(), ids=list(BAD))
def test_bad_options(call: Any, expected: str) -> None:
    says(ValueError, expected, call)

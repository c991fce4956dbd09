"""Prepared models: the results of the models themselves, whatever computes them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.models import BERT, GPT, Encoder
from tests.support.libraries import LIBRARIES, Library, marks_of
from tests.support.messages import says

# Sums of a few dozen products through two or three blocks, in another order, of numbers around 1.
ROUNDING = 2e-5
RNG = np.random.default_rng(0)
SMALL: dict[str, Any] = {"vocab_size": 23, "max_seq_len": 40, "dim": 24, "num_layers": 2, "num_heads": 3}
each_mode = pytest.mark.parametrize("mode", ["auto", "reference"])


def large_params(model: Any, dtype: str = "float32") -> Any:
    """Parameters so large that each block changes its input."""

    def moved(leaf: Any) -> Any:
        return (leaf + 0.3 * RNG.standard_normal(leaf.shape)).astype(leaf.dtype)

    return tree.map(moved, model.init(aa.Philox(0), dtype))


def assert_near(found: Any, expected: Any, tolerance: float = ROUNDING) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    scale = np.max(np.abs(expected), initial=1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@each_mode
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, 17), (2, 40)])
def test_bert_without_padding(B: int, T: int, activation: Any, mode: Any) -> None:
    model = BERT(**SMALL, hidden_dim=53, activation=activation)
    params, tokens, types = large_params(model), RNG.integers(23, size=(B, T)), RNG.integers(2, size=(B, T))
    prepared = model.prepare(params)
    with aa.use_kernels(mode):
        found, expected = prepared(tokens, types), model(params, tokens, types)
        assert_near(found.states, expected.states)
        assert_near(found.pooled, expected.pooled)
        assert_near(prepared(tokens).states, model(params, tokens).states)


@each_mode
def test_bert_with_lengths_and_masks_of_tokens(mode: Any) -> None:
    model = BERT(**SMALL)
    params, tokens = large_params(model), RNG.integers(23, size=(4, 11))
    lengths = np.array([11, 1, 6, 10])
    exists = np.arange(11) < lengths[:, None]
    expected, prepared = model(params, tokens, lengths=lengths), model.prepare(params)
    with aa.use_kernels(mode):
        for found in (prepared(tokens, lengths=lengths), prepared(tokens, attn_mask=exists[:, None, None, :])):
            assert_near(found.states[exists], expected.states[exists])
            assert_near(found.pooled, expected.pooled)
            assert not found.states[~exists].any()
        scattered = RNG.random((4, 11)) < 0.6  # also masks with holes, and of the first token
        expected = model(params, tokens, attn_mask=scattered[:, None, None, :])
        found = prepared(tokens, attn_mask=scattered[:, None, None, :])
        assert_near(found.states[scattered], expected.states[scattered])
        assert_near(found.pooled, expected.pooled)
        pairs = RNG.random((4, 3, 11, 11)) < 0.6
        assert_near(prepared(tokens, attn_mask=pairs).states, model(params, tokens, attn_mask=pairs).states)


@each_mode
@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize(
    ("gated", "bias", "final_norm"), [(True, False, True), (False, True, False), (True, True, None)]
)
def test_encoders(gated: bool, bias: bool, final_norm: bool | None, norm: Any, pre_norm: bool, mode: Any) -> None:
    model = Encoder(
        24, 3, 6, 50, num_kv_heads=2, pre_norm=pre_norm, norm=norm, gated=gated, bias=bias, final_norm=final_norm
    )
    params, x = large_params(model), RNG.standard_normal((2, 3, 19, 24), np.float32)
    prepared, lengths = model.prepare(params), RNG.integers(20, size=(2, 3))
    exists = np.arange(19) < lengths[..., None]
    with aa.use_kernels(mode):
        for is_causal in (False, True):
            assert_near(prepared(x, is_causal=is_causal), model(params, x, is_causal=is_causal))
            found = prepared(x, is_causal=is_causal, kv_lengths=lengths)
            assert_near(found[exists], model(params, x, is_causal=is_causal, kv_lengths=lengths)[exists])
            assert not found[~exists].any()
        bias_of_pairs = RNG.standard_normal((19, 19)).astype(np.float32)
        assert_near(prepared(x, bias=bias_of_pairs), model(params, x, bias=bias_of_pairs))


ROTARY = [
    {}, {"dims": 4, "base": 500.0}, {"interleaved": True},
    {"dims": 6, "interleaved": True, "scaling": "ntk", "factor": 3.0},
]  # fmt: skip


@each_mode
@pytest.mark.parametrize("options", ROTARY, ids=lambda options: "-".join(options) or "plain")
def test_rotary_positions(options: Any, mode: Any) -> None:
    model = Encoder(24, 2, 3, num_kv_heads=1, rotary=aa.Rotary(**options))
    params, x = large_params(model), RNG.standard_normal((2, 11, 24), np.float32)
    prepared, lengths = model.prepare(params), np.array([11, 4])
    with aa.use_kernels(mode):
        assert_near(prepared(x[:, :3]), model(params, x[:, :3]))
        assert_near(prepared(x), model(params, x))
        found, expected = prepared(x, kv_lengths=lengths), model(params, x, kv_lengths=lengths)
        assert_near(found[1, :4], expected[1, :4])
        language = GPT(
            53,
            40,
            48,
            2,
            4,
            num_kv_heads=2,
            positions="rotary",
            rotary=aa.Rotary(**options),
            norm="rms",
            gated=True,
            activation="silu",
            bias=False,
            tie_embeddings=False,
        )
        params, tokens = large_params(language), RNG.integers(53, size=(2, 29))
        own, counts = language.prepare(params), (9, 1, 1, 18)
        found = step_by_step(own, (), tokens, counts, False)
        for result, expected in zip(found, step_by_step(language, (params,), tokens, counts, False), strict=True):
            assert_near(np.asarray(result), np.asarray(expected))
    if mode == "auto":
        chosen = {choice.function: choice.kernel for choice in aa.explain(own, tokens).choices}
        assert chosen["models.prepared.gpt:gpt_logits"] != "reference"


@each_mode
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_generates_the_tokens_of_the_model(positions: Any, mode: Any) -> None:
    model = GPT(53, 60, 48, 2, 4, num_kv_heads=2, positions=positions)
    params, prompts = large_params(model), RNG.integers(53, size=(3, 7))
    small = GPT(53, 60, 24, 1, 2)
    small_params = large_params(small)
    prepared, draft = model.prepare(params), small.prepare(small_params)
    with aa.use_kernels(mode):
        options: Any
        for options in (
            {}, {"lengths": [7, 2, 5]}, {"method": "sample", "rng": 3, "top_k": 9, "end": 5},
            {"method": "beam", "beams": 3},
        ):  # fmt: skip
            expected = aa.models.generate(model, params, prompts, 12, **options)
            np.testing.assert_array_equal(aa.models.generate(prepared, None, prompts, 12, **options), expected)
        expected = aa.models.generate(model, params, prompts, 12)
        found = aa.models.generate(prepared, None, prompts, 12, draft=(draft, None))
        np.testing.assert_array_equal(found, expected)
    found = aa.models.generate(model.prepare(params, weights="bfloat16"), None, prompts, 12)
    assert found.shape == expected.shape


def test_generation_with_wrong_parameters() -> None:
    model = GPT(53, 60, 24, 1, 2)
    params, prompts = model.init(aa.Philox(0)), RNG.integers(53, size=(1, 3))
    prepared = model.prepare(params)
    says(TypeError, "`params` is given", lambda: aa.models.generate(prepared, params, prompts, 3))
    says(TypeError, "`params` is None", lambda: aa.models.generate(model, None, prompts, 3))
    says(TypeError, "`params` is None", lambda: aa.models.beam_search(model, None, prompts, 3))
    says(
        TypeError,
        "`params` is given",
        lambda: next(aa.models.stream(model, params, prompts, 3, draft=(prepared, params))),
    )


@each_mode
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(dtype: str, mode: Any) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    model = Encoder(24, 2, 3)
    params, x = large_params(model, dtype), RNG.standard_normal((2, 5, 24)).astype(aa.asarray([0], dtype).dtype)
    with aa.use_kernels(mode):
        found, expected = model.prepare(params)(x), model(params, x)
    # The model rounds each intermediate result to the 8 bits of a bfloat16, the kernel does not.
    assert_near(np.asarray(found, np.float64), np.asarray(expected, np.float64), {"bfloat16": 0.03}.get(dtype, 1e-3))
    assert found.dtype == x.dtype


@each_mode
def test_weights_in_bfloat16_are_rounded_once(mode: Any) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    model = BERT(**SMALL)
    params, tokens = large_params(model), RNG.integers(23, size=(2, 9))

    def rounded(node: Any, name: str = "") -> Any:
        if isinstance(node, dict):
            return {key: rounded(value, key) for key, value in node.items()}
        return node.astype(ml_dtypes.bfloat16).astype(np.float32) if name == "weight" else node

    blocks = [
        {name: part if "norm" in name else rounded(part) for name, part in block.items()} for block in params["blocks"]
    ]
    expected = model({**params, "blocks": blocks, "pooler": rounded(params["pooler"])}, tokens)
    with aa.use_kernels(mode):
        found = model.prepare(params, weights="bfloat16")(tokens)
    assert_near(found.states, expected.states)
    assert_near(found.pooled, expected.pooled)
    assert np.max(np.abs(found.states - model(params, tokens).states)) > 1e-3


@pytest.mark.parametrize("library", [pytest.param(each, marks=marks_of(each), id=each.name) for each in LIBRARIES])
def test_every_library(library: Library) -> None:
    model = Encoder(8, 2, 2)
    x = RNG.standard_normal((2, 5, 8)).astype(np.float32)
    params = large_params(model)
    expected = model(params, x, kv_lengths=[5, 3])
    found = aa.to_numpy(model.prepare(library.moved(params))(library.array(x), kv_lengths=[5, 3]))
    exists = np.arange(5) < np.array([5, 3])[:, None]
    assert_near(found[exists], expected[exists])


def test_a_prepared_model_can_be_pickled_and_leaves_its_arguments() -> None:
    model = BERT(**SMALL)
    params, tokens = large_params(model), RNG.integers(23, size=(2, 9))
    before = tree.map(np.copy, params)
    prepared = model.prepare(params)
    first = prepared(tokens)
    again = pickle.loads(pickle.dumps(prepared))(tokens)
    np.testing.assert_array_equal(again.states, first.states)
    later = prepared(tokens[:, ::-1])
    assert not np.array_equal(later.states, first.states)
    np.testing.assert_array_equal(again.states, first.states)  # results are not memory of the next call
    for (path, leaf), (_, old) in zip(tree.flatten(params), tree.flatten(before), strict=True):
        np.testing.assert_array_equal(leaf, old, err_msg=tree.format_path(path))


def test_no_sequences_and_no_tokens() -> None:
    encoder = Encoder(24, 2, 3)
    prepared = encoder.prepare(large_params(encoder))
    assert prepared(np.zeros((0, 5, 24), np.float32)).shape == (0, 5, 24)
    assert prepared(np.zeros((2, 0, 24), np.float32)).shape == (2, 0, 24)
    assert not prepared(np.ones((2, 3, 24), np.float32), kv_lengths=[0, 0]).any()
    model = BERT(**SMALL)
    assert model.prepare(large_params(model))(np.zeros((0, 5), np.int64)).pooled.shape == (0, 24)


def step_by_step(model: Any, given: tuple[Any, ...], tokens: Any, counts: Any, last: bool) -> list[Any]:
    """The logits of each step, and the cache in the end."""
    cache, at, results = model.cache(len(tokens), 40), 0, []
    for count in counts:
        logits, cache = model.step(*given, tokens[:, at : at + count], cache, last=last)
        results.append(logits)
        at += count
    filled = [x[:, :, :at] for block in cache.blocks for x in (block.key, block.value)]
    return [*results, cache.length, *filled]


@each_mode
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"positions": "none", "num_kv_heads": 1, "norm": "rms"}, {"num_kv_heads": 2, "tie_embeddings": False},
        {"gated": True, "activation": "silu", "bias": False}, {"positions": "rotary"}, {"positions": "alibi"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)  # fmt: skip
def test_language_models(options: Any, batch: int, last: bool, mode: Any) -> None:
    model = GPT(53, 40, 48, 2, 4, **options)
    params, tokens = large_params(model), RNG.integers(53, size=(batch, 29))
    prepared = model.prepare(params)
    with aa.use_kernels(mode):
        assert_near(prepared(tokens), model(params, tokens))
        counts = (9, 1, 1, 3, 12, 1, 2)
        found = step_by_step(prepared, (), tokens, counts, last)
        for result, expected in zip(found, step_by_step(model, (params,), tokens, counts, last), strict=True):
            if isinstance(expected, int):
                assert result == expected
            else:
                assert_near(result, expected)


@each_mode
def test_left_padding_and_masks_of_language_models(mode: Any) -> None:
    model = GPT(53, 40, 48, 2, 4)
    params, tokens = large_params(model), RNG.integers(53, size=(2, 9))
    prepared, mask = model.prepare(params), RNG.random((9, 9)) < 0.7
    with aa.use_kernels(mode):
        assert_near(prepared(tokens, attn_mask=mask), model(params, tokens, attn_mask=mask))
        found, expected = prepared(tokens, lengths=[9, 4]), model(params, tokens, lengths=[9, 4])
        assert_near(found[1, :4], expected[1, :4])
        logits, _ = prepared.step(tokens, prepared.cache(2, starts=[0, 3]))
        assert_near(logits[1, 3:], model(params, tokens[1:, 3:])[0])


@each_mode
def test_language_models_with_weights_in_bfloat16(mode: Any) -> None:
    model = GPT(53, 40, 48, 2, 4)
    params, tokens = large_params(model), RNG.integers(53, size=(1, 7))
    prepared = model.prepare(params, weights="bfloat16")
    with aa.use_kernels(mode):
        assert_near(prepared(tokens), model(prepared.params, tokens))
    error = np.abs(prepared(tokens) - model(params, tokens)) / np.max(np.abs(model(params, tokens)))
    assert 1e-4 < np.max(error) < 0.1  # 8 bits of each weight


def test_logits_are_not_memory_of_the_next_step() -> None:
    model = GPT(53, 40, 48, 2, 4)
    prepared, tokens = model.prepare(large_params(model)), RNG.integers(53, size=(1, 7))
    first, cache = prepared.step(tokens, prepared.cache(1), last=True)
    kept = first.copy()
    second, _ = prepared.step(tokens, cache, last=True)
    assert not np.array_equal(second, first)
    np.testing.assert_array_equal(first, kept)


def test_wrong_calls() -> None:
    model, encoder = BERT(**SMALL), Encoder(24, 2, 3)
    params = large_params(model)
    prepared, tokens = model.prepare(params), np.ones((2, 5), np.int64)
    says(ValueError, "`tokens` holds 23", lambda: prepared(np.full((1, 2), 23)))
    says(ValueError, "max_seq_len", lambda: prepared(np.zeros((1, 41), np.int64)))
    says(ValueError, "`types`", lambda: prepared(tokens, tokens + 1))
    says(ValueError, "`lengths`", lambda: prepared(tokens, lengths=[5, 6]))
    says(TypeError, "bool", lambda: prepared(tokens, attn_mask=np.ones((2, 1, 1, 5))))
    says(ValueError, "`weights` is 'int8', expected", lambda: model.prepare(params, weights="int8"))
    says(ValueError, "`params` lacks", lambda: model.prepare({}))
    own = encoder.prepare(large_params(encoder))
    says(ValueError, "`x`", lambda: own(np.ones((2, 5, 23), np.float32)))
    says(ValueError, "kv_lengths", lambda: own(np.ones((2, 5, 24), np.float32), kv_lengths=[6, 1]))
    says(ValueError, "float32", lambda: encoder.prepare(large_params(encoder, "float64"), weights="bfloat16"))
    gpt = GPT(53, 8, 48, 2, 4)
    language = gpt.prepare(large_params(gpt))
    says(ValueError, "`tokens` holds 53", lambda: language(np.full((1, 2), 53)))
    says(ValueError, "max_seq_len", lambda: language(np.zeros((1, 9), np.int64)))
    says(ValueError, "max_seq_len", lambda: language.step(np.zeros((1, 4), np.int64), language.cache(1, 3)))
    says(ValueError, "`tokens` has 2 sequences", lambda: language.step(tokens, language.cache(1)))
    says(TypeError, "`cache`", lambda: language.step(tokens, None))

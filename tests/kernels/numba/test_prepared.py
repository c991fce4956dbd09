"""Programs of prepared models: threads, rows, packed weights."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.kernels.numba.prepared import assembly, linear
from attnarray.kernels.numba.prepared.weights import pack_linear, rounded_bits
from attnarray.kernels.numba.vector.lanes import tile_size
from attnarray.models import BERT
from tests.models.test_prepared import large_params

MODEL = BERT(vocab_size=23, max_seq_len=300, dim=72, num_layers=2, num_heads=3, hidden_dim=130)
PARAMS = large_params(MODEL)
TOKENS = np.random.default_rng(0).integers(23, size=(2, 150))  # two blocks of rows and more


@pytest.mark.parametrize("threads", [2, 3])
def test_the_bits_do_not_depend_on_the_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results, used = [], []
    parts_of = assembly.run_parts
    monkeypatch.setattr(assembly, "run_parts", lambda kernel, parts: used.append(len(parts)) or parts_of(kernel, parts))
    for count in (1, threads):
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", str(count))
        results.append(MODEL.prepare(PARAMS)(TOKENS))
    assert used == [1, threads]
    np.testing.assert_array_equal(results[1].states, results[0].states)
    np.testing.assert_array_equal(results[1].pooled, results[0].pooled)


def test_one_thread_computes_what_others_do_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNARRAY_NUM_THREADS", "3")
    prepared = MODEL.prepare(PARAMS)
    expected = prepared(TOKENS)

    def in_turns(kernel: Any, parts: Any) -> None:
        for part in reversed(parts):  # the first one computes all, the others find nothing left
            kernel(*part)

    monkeypatch.setattr(assembly, "run_parts", in_turns)
    np.testing.assert_array_equal(prepared(TOKENS).states, expected.states)


def test_the_bits_of_a_sequence_do_not_depend_on_the_others() -> None:
    prepared = MODEL.prepare(PARAMS)
    together = prepared(TOKENS, lengths=[97, 1]).states
    np.testing.assert_array_equal(prepared(TOKENS[:1, :97]).states[0], together[0, :97])
    np.testing.assert_array_equal(prepared(TOKENS[1:, :1]).states[0], together[1, :1])


def test_concurrent_calls_have_memory_of_their_own() -> None:
    prepared = MODEL.prepare(PARAMS)
    batches = [TOKENS[:, : 20 + 10 * n] for n in range(8)]
    expected = [prepared(tokens).states for tokens in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found, other in zip(pool.map(prepared, batches), expected, strict=True):
            np.testing.assert_array_equal(found.states, other)


def test_missing_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = MODEL.prepare(PARAMS)
    expected = prepared(TOKENS).states
    (room,) = next(pool for key, pool in prepared.kept.items() if isinstance(key, tuple))
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "run_parts", lambda *_: room.state.fill(1))  # as a thread does without scratch memory
        with pytest.raises(MemoryError, match="scratch"):
            prepared(TOKENS)
    np.testing.assert_array_equal(prepared(TOKENS).states, expected)


def test_packed_weights() -> None:
    rng, width = np.random.default_rng(0), tile_size(32)[0]
    maps = [{"weight": rng.standard_normal((n, 5), np.float32)} for n in (width - 1, 3)]
    maps[1]["bias"] = np.ones(3, np.float32)
    joined = np.concatenate([each["weight"] for each in maps])
    packed = pack_linear(maps, False)
    assert packed.weight.ctypes.data % 64 == 0
    columns = packed.weight.transpose(0, 2, 1).reshape(-1, 5)
    np.testing.assert_array_equal(columns[: width + 2], joined)
    assert not columns[width + 2 :].any()
    np.testing.assert_array_equal(packed.bias, [0] * (width - 1) + [1] * 3 + [0] * (width - 2))
    halves = pack_linear(maps, True).weight
    both = np.concatenate([halves << 16, halves & np.uint32(0xFFFF0000)], axis=2).view(np.float32)
    rounded = both.transpose(0, 2, 1).reshape(-1, 5)[: width + 2]
    np.testing.assert_array_equal(rounded, rounded_bits(joined).view(np.float32))
    assert np.max(np.abs(rounded / joined - 1)) <= 2.0**-8


def test_bfloat16_rounds_to_even_and_keeps_what_is_not_finite() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    x = np.concatenate([x, [np.inf, -np.inf, 0.0, -0.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8]]).astype(np.float32)
    np.testing.assert_array_equal(rounded_bits(x).view(np.float32), x.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.isnan(rounded_bits(np.array([np.nan], np.float32)).view(np.float32)[0])


def test_explain_names_the_kernel_and_says_why_not() -> None:
    prepared = MODEL.prepare(PARAMS)
    assert [choice.function for choice in aa.explain(prepared, TOKENS).choices] == ["models.prepared.bert:bert_states"]
    double = MODEL.prepare(large_params(MODEL, "float64"))
    reason = aa.explain(double, TOKENS).choices[0]
    assert (reason.kernel, "float64" in reason.reason) == ("reference", True)
    assert linear.ACTIVATIONS[linear.SILU] == "silu"

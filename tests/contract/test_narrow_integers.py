"""Integers in any dtype mean the same: sums and differences of them never wrap, and results hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import models, tree
from tests.support.libraries import Library
from tests.support.messages import says

DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64")
RNG = np.random.default_rng(0)
Cast = Callable[[Any], Any]

SMALL_GPT = models.GPT(vocab_size=2000, max_seq_len=140, dim=8, num_layers=1, num_heads=2)
ROTARY = models.GPT(vocab_size=2000, max_seq_len=140, dim=8, num_layers=1, num_heads=2, positions="rotary", norm="rms")
PARAMS, ROTARY_PARAMS = (tree.map(lambda leaf: leaf * 6, model.init(aa.Philox(1))) for model in (SMALL_GPT, ROTARY))
SMALL_BERT = models.BERT(vocab_size=60, max_seq_len=140, dim=8, num_layers=1, num_heads=2, hidden_dim=8)
XL = models.TransformerXL(100, memory=6, dim=8, num_layers=1, num_heads=2, dropout=0.0)
SEQ2SEQ = models.Seq2Seq(
    100, 2000, dim=4, hidden_dim=8, attention=aa.layers.BahdanauAttention(query_dim=8, key_dim=8, hidden_dim=6)
)
TRANSFORMER = models.Transformer(100, 2000, max_seq_len=140, dim=8, num_layers=1, num_heads=2)
TEXT = RNG.integers(100, size=(2, 130))
Q = RNG.standard_normal((2, 2, 5, 4))
LONG = RNG.standard_normal((2, 2, 127, 4))


def attend(**options: Any) -> Any:
    return aa.scaled_dot_product_attention(Q, LONG, LONG, **options)


def grow(model: Any, **options: Any) -> Callable[[Cast], Any]:
    params = (
        model.init(aa.Philox(1))
        if model not in (SMALL_GPT, ROTARY)
        else PARAMS
        if model is SMALL_GPT
        else ROTARY_PARAMS
    )
    return lambda cast: models.generate(model, params, cast(TEXT[:, :4]), 5, **options)


def step_in_cache(cast: Cast) -> Any:
    cache = SMALL_GPT.cache(2, 130, starts=cast([3, 100]))
    _, cache = SMALL_GPT.step(PARAMS, cast(TEXT[:, :125]), cache, last=True)
    return SMALL_GPT.step(PARAMS, cast(TEXT[:, :1]), cache.rows(cast([1, 0])))[0]


def greedy(model: Any) -> Callable[[Cast], Any]:
    params = tree.map(lambda leaf: leaf * 6, model.init(aa.Philox(2)))
    return lambda cast: model.greedy(params, cast(TEXT[:, :7]), 1, 6, source_lengths=cast([7, 3]))


def graph(cast: Cast) -> Any:
    nodes, edges = RNG_NODES, cast([[0, 1, 2, 120], [1, 0, 0, 127]])
    return aa.graph_attention(nodes, nodes, nodes, np.ones((1, 3)), edges)


RNG_NODES = RNG.standard_normal((128, 1, 3))
LOGITS = RNG.standard_normal((4, 128))
CALLS: dict[str, Callable[[Cast], Any]] = {
    "embedding": lambda c: aa.embedding(c([127, 0, 5]), LOGITS.T),
    "cross_entropy": lambda c: aa.cross_entropy(LOGITS, c([127, 0, 5, 77]), reduction="none", ignore_index=77),
    "segment_softmax": lambda c: aa.segment_softmax(LOGITS, c([1, 0, 1, 126]), 1000),
    "rotary": lambda c: aa.rotary(Q, c([[[120, 121, 125, 126, 127]], [[0, 1, 2, 3, 4]]])),
    "sinusoidal": lambda c: aa.sinusoidal(c([[0, 127], [100, 3]]), 8),
    "graph_attention": graph,
    "add_self_loops": lambda c: aa.add_self_loops(c([[0], [1]]), 1000),
    "q_offset": lambda c: attend(is_causal=True, q_offset=c([125, 0])),
    "q_offset and window": lambda c: attend(window=(3, 0), q_offset=c([127, 1])),
    "kv_lengths": lambda c: attend(kv_lengths=c([127, 3])),
    "padding": lambda c: attend(attn_mask=aa.Padding(c([127, 3])) & aa.Causal(100)),
    "dropout": lambda c: attend(q_offset=c([125, 0]), dropout_p=0.5, rng=3),
    "documents": lambda c: attend(attn_mask=aa.Documents(c([[0, 1, 127, 3, 4]] * 2), np.arange(254).reshape(2, 127))),
    "dense mask": lambda c: aa.Padding(c([127, 3])).to_dense(2, 200),
    "multi_head_attention": lambda c: aa.layers.MultiHeadAttention(dim=4, num_heads=2, rotary=aa.Rotary())(
        aa.layers.MultiHeadAttention(dim=4, num_heads=2).init(aa.Philox(0), "float64"), Q[0], q_offset=c([127, 0])
    ),
    "lengths of a GPT": lambda c: SMALL_GPT(PARAMS, c(TEXT), lengths=c([127, 3])),
    "starts of a GPT": lambda c: SMALL_GPT(PARAMS, c(TEXT), starts=c([127, 3])),
    "starts of a rotary GPT": lambda c: ROTARY(ROTARY_PARAMS, c(TEXT), starts=c([127, 3])),
    "cache": step_in_cache,
    "BERT": lambda c: SMALL_BERT(SMALL_BERT.init(aa.Philox(0)), c(TEXT % 60), c(TEXT % 2), lengths=c([127, 3])).states,
    "Transformer-XL": lambda c: XL(XL.init(aa.Philox(0)), c(TEXT[:, :9])).logits,
    "greedy": grow(SMALL_GPT, lengths=[4, 2]),
    "greedy by narrow lengths": lambda c: models.generate(SMALL_GPT, PARAMS, TEXT[:, :4], 5, lengths=c([4, 2])),
    "sample": grow(ROTARY, method="sample", rng=3, lengths=[4, 2]),
    "beam": grow(SMALL_GPT, method="beam", beams=3, end=7),
    "beam as in transformers": grow(SMALL_GPT, method="beam", beams=3, end=7, early_stopping=False),
    "stream": lambda c: list(models.stream(SMALL_GPT, PARAMS, c(TEXT[:, :4]), 4)),
    "Seq2Seq": greedy(SEQ2SEQ),
    "Transformer": greedy(TRANSFORMER),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_narrow_integers_give_what_int64_gives(name: str, dtype: str) -> None:
    expected, found = (CALLS[name](lambda x, d=d: np.asarray(x, d)) for d in ("int64", dtype))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert np.asarray(found).dtype == np.asarray(expected).dtype


def test_generation_needs_more_than_eight_bits() -> None:
    for name in ("greedy", "sample", "beam", "Transformer", "Seq2Seq"):
        found = np.asarray(CALLS[name](lambda x: np.asarray(x, "uint8")))
        assert found.dtype == np.int64
        assert found.max() > 255, name


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_narrow_integers_on_every_library(library: Library, dtype: str) -> None:
    def cast(x: Any) -> Any:
        return library.array(np.asarray(x, dtype))

    x = library.array(Q)
    long = library.array(LONG)
    found = aa.scaled_dot_product_attention(x, long, long, window=(3, 0), q_offset=cast([125, 0]))
    expected = aa.scaled_dot_product_attention(Q, LONG, LONG, window=(3, 0), q_offset=np.array([125, 0]))
    np.testing.assert_allclose(aa.to_numpy(found), expected, rtol=0, atol=1e-14)
    loops = aa.to_numpy(aa.add_self_loops(cast([[0], [1]]), 300))
    np.testing.assert_array_equal(loops, aa.add_self_loops(np.array([[0], [1]]), 300))
    params = library.moved(PARAMS)
    found = models.generate(SMALL_GPT, params, cast(TEXT[:, :4]), 5, lengths=cast([4, 2]))
    np.testing.assert_array_equal(
        aa.to_numpy(found), models.generate(SMALL_GPT, PARAMS, TEXT[:, :4], 5, lengths=[4, 2])
    )


SIZES: dict[str, Callable[[Any], Any]] = {
    "sinusoidal": lambda n: aa.sinusoidal(n(200), n(200)),
    "alibi": lambda n: aa.alibi(n(8), n(200), n(200), q_offset=n(100)),
    "alibi, causal": lambda n: aa.alibi(n(8), n(200), n(200), causal=True),
    "relative_buckets": lambda n: aa.relative_buckets(n(99), n(200), q_offset=n(99), buckets=n(64), max_distance=n(99)),
    "dense mask": lambda n: aa.Window(n(3), n(100)).to_dense(n(200), n(200), q_offset=n(200)),
    "rotary": lambda n: aa.rotary(LOGITS, offset=n(255), dims=n(128)),
    "Linear": lambda n: aa.layers.Linear(n(200), n(200)).init(aa.Philox(0))["weight"],
    "MultiHeadAttention": lambda n: aa.layers.MultiHeadAttention(n(128), n(64), key_dim=n(4)).init(aa.Philox(0))[
        "query"
    ],
    "GPT": lambda n: models.GPT(n(50), n(20), dim=n(128), num_layers=n(1), num_heads=n(2)).init(aa.Philox(0)),
    "Transformer": lambda n: models.Transformer(
        n(50), n(50), max_seq_len=n(20), dim=n(128), num_layers=n(1), num_heads=n(2)
    ).init(aa.Philox(0)),
    "generate": lambda n: models.generate(SMALL_GPT, PARAMS, TEXT[:, :4], n(6), end=n(7)),
    "nothing": lambda n: models.generate(SMALL_GPT, PARAMS, TEXT[:, :4], n(0)),
    "beam": lambda n: models.generate(SMALL_GPT, PARAMS, TEXT[:, :4], n(6), method="beam", beams=n(130)),
    "greedy": lambda n: TRANSFORMER.greedy(TRANSFORMER.init(aa.Philox(2)), TEXT[:, :4], n(1), n(3), end=n(2)),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
@pytest.mark.parametrize("name", SIZES)
def test_sizes_may_be_scalars_of_numpy(name: str, dtype: Any) -> None:
    found, expected = tree.flatten({"": SIZES[name](dtype)}), tree.flatten({"": SIZES[name](int)})
    for (_, a), (_, b) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.asarray(a).dtype == np.asarray(b).dtype


LARGE = np.uint64(2**64 - 100)


def test_unsigned_integers_that_no_int64_holds_are_not_taken_for_negative_ones() -> None:
    expected = "holds 18446744073709551516, expected integers up to 9223372036854775807, which int64 holds"
    rows = np.array([1, LARGE], np.uint64)
    says(ValueError, f"`targets` {expected}", lambda: aa.cross_entropy(LOGITS[:2], rows))
    says(ValueError, f"`indices` {expected}", lambda: aa.embedding(rows, LOGITS))
    says(ValueError, f"`kv_lengths` {expected}", lambda: attend(kv_lengths=rows))
    says(ValueError, f"`q_offset` {expected}", lambda: attend(q_offset=rows))
    says(ValueError, f"`tokens` {expected}", lambda: SMALL_GPT(PARAMS, rows[None]))
    ids = np.array([[LARGE, 1, LARGE, 2, 3]] * 2, np.uint64)  # which are only compared
    same = aa.Documents(ids, ids).to_dense(5, 5)
    assert same[0, 0, 0].tolist() == [True, False, True, False, False]


FAR: dict[str, Callable[[Any], Any]] = {
    "`q_offset`": lambda far: attend(is_causal=True, q_offset=far),
    "`q_offset` ": lambda far: aa.multi_head_attention(
        Q[0], params=aa.layers.MultiHeadAttention(dim=4, num_heads=2).init(aa.Philox(0), "float64"), num_heads=2,
        rotary=aa.Rotary(), q_offset=far,
    ),
    "`positions`": lambda far: aa.rotary(Q, np.reshape(far, (2, 1, 1))),
}  # fmt: skip


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("far", [2**40, -(2**40), 2**30 + 1])
def test_arrays_of_positions_are_checked_as_integers_are(name: str, far: int) -> None:
    expected = f"{name.strip()} goes from {min(far, 0)} to {max(far, 0)}, expected integers from -1073741824 to"
    says(ValueError, expected, lambda: FAR[name](np.array([0, far])))
    if name == "`q_offset`":
        says(ValueError, f"`q_offset` is {far}, expected an integer", lambda: FAR[name](far))

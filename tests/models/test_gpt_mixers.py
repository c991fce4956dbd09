"""GPT with linear mixers: gradients, padding, the cache of both kinds, generation, checkpoints, bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import optim, tree
from attnarray.layers import LinearAttention
from attnarray.layers.cache import KVCache, LinearCache
from attnarray.models import GPT, Encoder, beam_search, generate, stream
from tests.models.test_gpt import fresh
from tests.support.libraries import Library, assert_close, assert_trees_close
from tests.support.messages import says

ROUNDING = 1e-12  # sums of a few dozen products in another order
ROTARY = {"positions": "rotary", "norm": "rms", "activation": "silu", "gated": True, "bias": False}
DELTA = LinearAttention.gated_delta_net(8, 2, num_value_heads=4, key_dim=3, value_dim=5, conv_width=3, norm_eps=0.01)
MODELS: dict[str, GPT] = {
    "hybrid": GPT(11, 12, 8, 4, 2, 12, mixers=("gated_delta_net", "gated_delta_net", "gated_delta_net", "attention"),
                  **ROTARY),
    "attention first": GPT(11, 12, 8, 3, 2, 12, mixers=("attention", "kda"), num_kv_heads=1, tie_embeddings=False),
    "ALiBi": GPT(11, 12, 6, 2, 1, 9, mixers=("retnet", "attention"), positions="alibi"),
    "given layers": GPT(11, 12, 8, 3, 2, 5, mixers=(DELTA, "attention", "gla"), attention_gate="head", num_experts=3,
                        shared_expert_dim=6, **ROTARY),
    "no attention": GPT(11, 12, 8, 3, 2, 12, mixers=("gla", "mamba2", "delta_net"), positions="none"),
}  # fmt: skip
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
TOKENS = np.random.default_rng(0).integers(11, size=(3, 7))
STARTS = np.array([0, 2, 6])
PADDED: dict[str, Any] = {"whole": {}, "starts": {"starts": STARTS}, "lengths": {"lengths": [7, 3, 1]}}


@each_model
@pytest.mark.parametrize("options", PADDED.values(), ids=list(PADDED))
def test_gradients(model: GPT, options: Any) -> None:
    params = fresh(model)
    report = aa.gradcheck(model, params, TOKENS, **options, max_elements=2)
    assert report, str(report)
    assert {check.name for check in report.inputs} == {f"params.{tree.format_path(p)}" for p, _ in tree.flatten(params)}


@each_model
def test_recomputing_gives_the_same_with_dropout(model: GPT) -> None:
    model = dataclasses.replace(model, dropout=0.2)
    again, params = dataclasses.replace(model, recompute=True), fresh(model)
    logits, ctx = model.fwd(params, TOKENS, starts=STARTS, rng=aa.Philox(3))
    same, of_same = again.fwd(params, TOKENS, starts=STARTS, rng=aa.Philox(3))
    np.testing.assert_array_equal(same, logits)
    assert_trees_close(again.bwd(logits, of_same), model.bwd(logits, ctx), 0)


@each_model
def test_padding_does_not_count(model: GPT) -> None:
    params, rng = fresh(model), np.random.default_rng(1)
    for b, (row, size) in enumerate(zip(TOKENS, (7, 4, 2), strict=True)):
        alone = model(params, row[None, :size])
        behind, before = rng.integers(11, size=(2, 3, 7))
        behind[b, :size], before[b, 7 - size :] = row[:size], row[:size]
        lengths = np.array([7, 7, 7])
        lengths[b] = size
        assert_close(model(params, behind, lengths=lengths)[b, :size], alone[0], ROUNDING)
        assert_close(model(params, before, starts=7 - lengths)[b, 7 - size :], alone[0], ROUNDING)


@each_model
@pytest.mark.parametrize("options", [{}, {"starts": STARTS}], ids=["", "padded"])
@pytest.mark.parametrize("sizes", [(1,) * 7, (4, 3), (7,), (6, 1)], ids=str)
def test_steps_with_a_cache_are_the_whole_run(model: GPT, options: Any, sizes: tuple[int, ...]) -> None:
    params, start = fresh(model), 0
    whole, exists = model(params, TOKENS, **options), np.arange(7) >= options.get("starts", np.zeros(3))[:, None]
    cache = model.cache(3, dtype="float64", **options)
    for size in sizes:
        logits, cache = model.step(params, TOKENS[:, start : start + size], cache)
        there = exists[:, start : start + size]
        assert_close(logits[there], whole[:, start : start + size][there], ROUNDING)
        start += size
        assert cache.length == start
    rows = np.array([2, 0, 2])
    _, cache = model.step(params, TOKENS[:, :-1], model.cache(3, dtype="float64", **options))
    chosen = cache.rows(rows)
    logits, _ = model.step(params, TOKENS[rows, -1:], chosen)
    assert_close(logits, whole[rows, -1:], ROUNDING)
    assert chosen.batch == 3


def test_each_block_has_the_cache_of_its_mixer() -> None:
    cache = MODELS["hybrid"].cache(2, 9)
    assert [type(block) for block in cache.blocks] == [LinearCache, LinearCache, LinearCache, KVCache]
    assert (cache.max_seq_len, cache.has_states, cache.batch, cache.length) == (9, True, 2, 0)
    assert MODELS["no attention"].cache(2, 9).max_seq_len is None
    plain = GPT(11, 12, 8, 2, 2)
    assert not plain.cache(2).has_states
    assert GPT(11, 12, 8, 2, 2, mixers=["attention", "attention"]) == plain
    assert GPT(11, 12, 8, 4, 2, mixers=("gla", "attention") * 2).mixers == ("gla", "attention")
    assert hash(GPT(11, 12, 8, 2, 2, mixers=["gla"])) == hash(GPT(11, 12, 8, 2, 2, mixers=("gla", "gla")))


@each_model
def test_generated_tokens_are_those_of_whole_calls(model: GPT) -> None:
    params, lengths = fresh(model), [7, 4, 2]
    found = generate(model, params, TOKENS, 5, lengths=lengths)
    for b, length in enumerate(lengths):
        row = TOKENS[b, :length]
        for token in found[b]:
            assert token == np.argmax(model(params, row[None])[0, -1])
            row = np.append(row, token)
    assert np.stack(list(stream(model, params, TOKENS, 5, lengths=lengths)), axis=1).tolist() == found.tolist()
    sampled = generate(model, params, TOKENS, 3, method="sample", rng=2, lengths=lengths)
    alone = generate(model, params, TOKENS[:1], 3, method="sample", rng=2)
    assert sampled[0].tolist() == alone[0].tolist()


@each_model
def test_beams_have_the_scores_of_whole_calls(model: GPT) -> None:
    params, lengths = fresh(model), [7, 4, 2]
    best = beam_search(model, params, TOKENS, 4, beams=3, lengths=lengths)
    for b, length in enumerate(lengths):
        row = np.append(TOKENS[b, :length], best.tokens[b])[None]
        steps = aa.log_softmax(model(params, row))[0, length - 1 : -1]
        score = np.mean(np.take_along_axis(steps, best.tokens[b][:, None], axis=1))
        assert best.scores[b] == pytest.approx(score, rel=1e-10)


@each_model
def test_every_library(library: Library, model: GPT) -> None:
    params = fresh(model)
    logits, ctx = model.fwd(params, TOKENS, starts=STARTS)
    moved, tokens = library.moved(params), library.array(TOKENS)
    theirs, of_theirs = model.fwd(moved, tokens, starts=STARTS)
    assert_close(theirs, logits, ROUNDING)
    assert_trees_close(model.bwd(theirs, of_theirs).params, model.bwd(logits, ctx).params, 1e-10)  # of larger sums
    expected = generate(model, params, TOKENS, 2, lengths=[7, 3, 1])
    assert aa.to_numpy(generate(model, moved, tokens, 2, lengths=[7, 3, 1])).tolist() == expected.tolist()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-2), ("bfloat16", 8e-2)])  # a few roundings of each
@each_model
def test_16_bit_parameters(model: GPT, dtype: str, tolerance: float) -> None:
    params = tree.map(lambda leaf: aa.asarray(leaf, dtype), model.init(aa.Philox(0)))
    wide = tree.map(lambda leaf: leaf.astype(np.float64), params)
    logits, expected = model(params, TOKENS, starts=STARTS), model(wide, TOKENS, starts=STARTS)
    assert logits.dtype == params["token"]["weight"].dtype
    assert_close(logits, expected, tolerance)
    assert generate(model, params, TOKENS, 2, lengths=[7, 3, 1]).shape == (3, 2)


@pytest.mark.parametrize("name", ["hybrid", "no attention"])
def test_prepared_models_and_training_states(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    params = model.init(aa.Philox(0))
    prepared = model.prepare(params)
    whole = model(params, TOKENS)
    assert_close(prepared(TOKENS), whole, 1e-6)
    _, cache = prepared.step(TOKENS[:, :5], prepared.cache(3))
    assert_close(prepared.step(TOKENS[:, 5:], cache)[0], whole[:, 5:], 1e-5)
    state = {"params": params, "optimizer": optim.adamw_init(params)}
    aa.checkpoints.save_state(tmp_path / "state", state)
    assert_trees_close(aa.checkpoints.load_state(tmp_path / "state"), state, 0)


def test_a_model_learns() -> None:
    model, rng = MODELS["hybrid"], np.random.default_rng(0)
    params, losses = model.init(aa.Philox(0)), []
    state = optim.adamw_init(params)
    tokens = np.tile(rng.integers(11, size=(8, 3)), (1, 3))  # the second and third part repeat the first
    for _ in range(60):
        logits, ctx = model.fwd(params, tokens[:, :-1])
        loss, loss_ctx = aa.cross_entropy_fwd(logits[:, 2:], tokens[:, 3:])
        dlogits = np.zeros_like(logits)
        dlogits[:, 2:] = aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits
        params, state = optim.adamw(params, model.bwd(dlogits, ctx).params, state, lr=1e-2)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


HYBRID = MODELS["hybrid"]
PARAMS = fresh(HYBRID)
PLAIN = GPT(11, 12, 8, 1, 2)
PLAIN_PARAMS = fresh(PLAIN)
ENCODER = Encoder(8, 2, 2, mixers=("gla", "attention"))
X = np.ones((2, 5, 8), np.float32)
BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "name": (ValueError, "`mixers` is 'gated_delta', expected one of 'attention', 'retnet', 'gla'",
             lambda: GPT(11, 8, 8, 2, 2, mixers=("gated_delta", "attention"))),
    "a string": (ValueError, "`mixers` is 'gla', expected a tuple of 1 to 2 names, repeated over the 2 layers",
                 lambda: GPT(11, 8, 8, 2, 2, mixers="gla")),
    "none": (ValueError, "expected a tuple of 1 to 2 names", lambda: GPT(11, 8, 8, 2, 2, mixers=())),
    "too many": (ValueError, "expected a tuple of 1 to 2 names", lambda: GPT(11, 8, 8, 2, 2, mixers=("gla",) * 3)),
    "ALiBi": (ValueError, "`positions` is 'alibi', but `mixers` is ('gla',): no layer has scores to bias.",
              lambda: GPT(11, 8, 8, 2, 2, mixers=("gla",), positions="alibi")),
    "dim": (ValueError, "`mixers` has a LinearAttention with `dim` 6, expected 8, that of the block.",
            lambda: GPT(11, 8, 8, 2, 2, mixers=(LinearAttention(6, 2), "attention"))),
    "a class": (ValueError, "`mixers` is <class", lambda: GPT(11, 8, 8, 2, 2, mixers=(LinearAttention, "attention"))),
    "value heads": (ValueError, "`num_heads` (2) must divide `num_value_heads` (3).",
                    lambda: LinearAttention(8, 2, num_value_heads=3)),
    "both heads": (ValueError, "`num_value_heads` is 4 and `num_kv_heads` 1, expected one of them",
                   lambda: LinearAttention(8, 2, num_value_heads=4, num_kv_heads=1)),
    "shared expert": (ValueError, "`shared_expert_dim` is given, but the block has no experts: give `num_experts`.",
                      lambda: GPT(11, 8, 8, 2, 2, shared_expert_dim=3)),
    "cross": (ValueError, "`mixer` is 'gla' with cross=True, expected 'attention'.",
              lambda: aa.layers.TransformerBlock(8, 2, cross=True, mixer="gla")),
    "mask": (ValueError, "`attn_mask` is given, but the block has mixer='gated_delta_net'; it is of scores, which it "
                         "does not have: give `kv_lengths` or `starts`.",
             lambda: HYBRID(PARAMS, TOKENS, attn_mask=np.eye(7, dtype=bool))),
    "not causal": (ValueError, "`is_causal` is False, but the block has mixer='gla', whose state holds earlier",
                   lambda: ENCODER(ENCODER.init(aa.Philox(0)), X)),
    "starts of attention": (ValueError, "`starts` is given, but the block has mixer='attention'; it is of linear",
                            lambda: (block := aa.layers.TransformerBlock(8, 2))(block.init(aa.Philox(0)), X, starts=1)),
    "starts of other axes": (ValueError, "`starts` is given, but `x` has shape (5, 8), expected (B, T, E).",
                             lambda: ENCODER(ENCODER.init(aa.Philox(0)), X[0], is_causal=True, starts=[1])),
    "starts shape": (ValueError, "`starts` has shape (2,), expected (3,): the length of the left padding",
                     lambda: HYBRID(PARAMS, TOKENS, starts=[0, 0])),
    "starts and a map": (ValueError, "`starts` is given, but the layer has feature_map='relu', which may map",
                         lambda: (layer := aa.layers.LinearAttention(8, 2, feature_map="relu"))(
                             layer.init(aa.Philox(0)), X, starts=1)),
    "negative starts": (ValueError, "`starts` goes from -1 to 2, expected integers from 0", lambda: (
        layer := aa.layers.LinearAttention(8, 2))(layer.init(aa.Philox(0)), X, starts=[-1, 2])),
    "up to": (ValueError, "`length` is 3, but the states of linear attention hold 7 positions, and none can",
              lambda: HYBRID.step(PARAMS, TOKENS, HYBRID.cache(3, dtype="float64"))[1].up_to(3)),
    "speculation": (ValueError, "`model` has linear mixers, whose states cannot forget drafted tokens",
                    lambda: generate(HYBRID, PARAMS, TOKENS, 3, draft=(PLAIN, PLAIN_PARAMS))),
    "speculation by it": (ValueError, "`draft` has linear mixers, whose states cannot forget drafted tokens",
                          lambda: generate(PLAIN, PLAIN_PARAMS, TOKENS, 3, draft=(HYBRID, PARAMS))),
    "LLaMA": (ValueError, "`model` has mixers=('gated_delta_net',", lambda: aa.checkpoints.save_pretrained(
        "unwritten", HYBRID, PARAMS)),
    "GPT-2": (ValueError, "which the config.json of gpt2 cannot express, only ('attention',)",
              lambda: aa.checkpoints.save_pretrained("unwritten", m := dataclasses.replace(PLAIN, mixers=("gla",)),
                                                     m.init(aa.Philox(0)))),
    "full cache": (ValueError, "`cache` has `max_seq_len` 3, holds 0 positions and was given 7 more.",
                   lambda: HYBRID.step(PARAMS, TOKENS, HYBRID.cache(3, 3, "float64"))),
    "cache of another": (TypeError, "`cache` is ", lambda: HYBRID.step(
        PARAMS, TOKENS, GPT(11, 12, 8, 4, 2).cache(3, dtype="float64"))),
    "batch": (ValueError, "`tokens` has 3 sequences, but `cache` has 2.",
              lambda: HYBRID.step(PARAMS, TOKENS, HYBRID.cache(2))),
    "weights": (TypeError, "expected the LinearAttentionContext", lambda: aa.linear_attention_bwd(
        np.ones(3), HYBRID.fwd(PARAMS, TOKENS)[1])),
}  # fmt: skip


@pytest.mark.parametrize(("error", "expected", "call"), BAD.values(), ids=list(BAD))
def test_bad_input(error: type[Exception], expected: str, call: Any) -> None:
    says(error, expected, call)


def test_a_state_keeps_all_its_positions() -> None:
    cache = HYBRID.step(PARAMS, TOKENS, HYBRID.cache(3, dtype="float64"))[1]
    assert cache.up_to(7).length == 7
    encoder = dataclasses.replace(ENCODER, mixers=("attention",))
    params, bias = encoder.init(aa.Philox(0)), np.ones((2, 1, 1, 5), np.float32)
    mixed = ENCODER.init(aa.Philox(0))
    y, ctx = ENCODER.fwd(mixed, X, is_causal=True, bias=bias)
    assert ENCODER.bwd(y, ctx).bias.shape == bias.shape  # that of the block with attention
    padded = encoder(params, X * np.arange(5, dtype=np.float32)[:, None], starts=[0, 2], is_causal=True)
    alone = encoder(params, (X * np.arange(5, dtype=np.float32)[:, None])[1:, 2:], is_causal=True)
    assert_close(padded[1:, 2:], alone, 1e-5)

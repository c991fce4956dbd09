"""The cases that `attnarray bench` knows: the quick set and the full set."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from attnarray.attention.dot_product.partial import Partial
from attnarray.bench.cases import BenchCase, Draw, Shapes, sdpa, triple
from attnarray.cases.attend import Distance

mechanism = functools.partial(triple, group="mechanisms", pairs=True)

GROUPS = {
    "prefill": "every query sees every key",
    "causal": "a query sees itself and what came before",
    "training": "forward and backward together, as in a training step",
    "decode": "one new query per sequence against many keys",
    "tiny": "calls so small that checks and dispatch count",
    "special": "options for which other libraries leave their fast path",
    "dtypes": "the call of the prefill group in other floating dtypes",
    "mechanisms": "attention with other scores than dot products",
    "triples": "the primitives around attention",
}


def _targets(rng: np.random.Generator, shapes: Shapes) -> np.ndarray:
    rows, classes = shapes["logits"]
    return rng.integers(0, classes, rows)


def _indices(rng: np.random.Generator, shapes: Shapes) -> np.ndarray:
    return rng.integers(0, shapes["weight"][0], (4096,))


def _bounds(rng: np.random.Generator, shapes: Shapes) -> np.ndarray:
    """Three sequences, of an eighth, a quarter and the rest of the rows."""
    rows = shapes["query"][0]
    return np.array([0, rows // 8, rows // 8 + rows // 4, rows])


def _slopes(rng: np.random.Generator, shapes: Shapes) -> tuple[Distance, ...]:
    return (Distance(rng.random(shapes["query"][1], np.float32)),)


def _log_gates(rng: np.random.Generator, shapes: Shapes) -> np.ndarray:
    return -rng.random(shapes["key"][:3], np.float32)


def _small(rng: np.random.Generator, shapes: Shapes) -> np.ndarray:
    """Vectors of a length below 1, so that states stay bounded."""
    return 0.1 * rng.standard_normal(shapes["key"], dtype=np.float32)


def _normal(*shape: int) -> Draw:
    return lambda rng, shapes: rng.standard_normal(shape, dtype=np.float32)


def _parts(rng: np.random.Generator, shapes: Shapes) -> tuple[Partial, ...]:
    out, lse = _normal(1, 8, 512, 64), _normal(1, 8, 512)
    return tuple(Partial(out(rng, shapes), lse(rng, shapes)) for _ in range(4))


def _weights(*shape: int) -> Draw:
    """Deviation 1 / sqrt(inputs): a state of many steps neither vanishes nor becomes chaotic."""
    return lambda rng, shapes: rng.standard_normal(shape, dtype=np.float32) / math.sqrt(shape[-1])


def _projections(rng: np.random.Generator, shapes: Shapes) -> dict[str, dict[str, np.ndarray]]:
    """The projections of multi-head attention, without biases: the gradient of the keys' would be rounding only."""
    width = shapes["query"][-1]
    draw = _weights(width, width)
    return {name: {"weight": draw(rng, shapes)} for name in ("query", "key", "value", "out")}


def _multi_head(name: str, direction: str) -> BenchCase:
    """Self-attention of 8 heads over 8 sequences of 256 positions, 256 features."""
    flops = 2.0 * 8 * 256 * 256 * (4 * 256 + 2 * 256)
    return mechanism(
        "multi_head_attention", name, direction=direction, flops=flops, options={"num_heads": 8},
        drawn={"params": _projections}, query=(8, 256, 256),
    )  # fmt: skip


def _luong(score: str, direction: str = "forward", **weight: tuple[int, ...]) -> BenchCase:
    """8 sequences of 256 queries and keys with 64 features."""
    of = (8, 256, 64)
    name = f"luong-{score}{'-training' if direction == 'both' else ''}"
    drawn = {name: _weights(*shape) for name, shape in weight.items()}
    return mechanism(
        "multiplicative_attention", name, direction=direction, flops=4.0 * 8 * 256 * 256 * 64,
        options={"score": score}, drawn=drawn, query=of, key=of, value=of,
    )  # fmt: skip


def _recurrent(function: str, gates: int) -> BenchCase:
    """A training step over 16 sequences of 64 steps, with 256 features and a state of 256."""
    rows = gates * 256
    drawn = {"weight_ih": _weights(rows, 256), "weight_hh": _weights(rows, 256), "bias_ih": _weights(rows)}
    flops = 2.0 * 16 * 64 * rows * (256 + 256)
    return triple(function, f"{function}-training", direction="both", flops=flops, drawn=drawn, x=(16, 64, 256))


PART_FLOPS = 4.0 * 8 * 512 * 256 * 64  # two products of H T S D
CONV_FLOPS = 2.0 * 16 * 256 * 128 * 128 * 5  # a product for each of the five taps


def _random_segments(rng: np.random.Generator, shapes: Shapes) -> np.ndarray:
    return rng.integers(0, 10**5, shapes["x"][0])


def _segments(name: str, columns: int) -> BenchCase:
    """A training step over a million edges in any order to 100,000 nodes."""
    return triple(
        "segment_softmax", name, direction="both", options={"count": 10**5}, drawn={"segments": _random_segments},
        x=(10**6, columns),
    )  # fmt: skip


def _edges(rng: np.random.Generator, shapes: Shapes) -> np.ndarray:
    """As many for each node as the citations of Cora have in both directions, between any nodes."""
    nodes = shapes["query"][0]
    return rng.integers(0, nodes, (2, nodes * 10556 // 2708))


def _graph(score: str, parts: int) -> BenchCase:
    """A training step over the nodes and edges of Cora, 8 heads of 8 features as in the first layer of GAT."""
    of = (2708, 8, 8)
    return triple(
        "graph_attention", f"{score}-training", group="mechanisms", direction="both", options={"score": score},
        drawn={"edges": _edges}, query=of, key=of, value=of, score_vector=(8, 8 * parts),
    )  # fmt: skip


def _additive(name: str, direction: str, length: int) -> BenchCase:
    """8 sequences of queries, keys and values with 128 features."""
    of = (8, length, 128)
    return mechanism(
        "additive_attention", name, direction=direction, query=of, key=of, value=of,
        score_vector=(128,),
    )  # fmt: skip


def _scored_by_lstm(name: str, length: int) -> BenchCase:
    """A training step over the pairs of 8 sequences of 64 features, with a state of 64."""
    drawn = {"weight_ih": _weights(256, 128), "weight_hh": _weights(256, 64), "output_weight": _weights(64, 64)}
    flops = 2.0 * 8 * length**2 * (256 * 64 + 64 * 64)
    return mechanism(
        "recurrent_attention", name, direction="both", flops=flops,
        drawn={**drawn, "gate_bias": _weights(256), "score_vector": _weights(64)}, query=(8, length, 64),
        key=(8, length, 64),
    )  # fmt: skip


def _local(keys: int, queries: int = 1024, name: str = "local-training") -> BenchCase:
    """A training step of queries with 64 features that attend to 64 keys each, however many keys there are.

    In float64: in float32 a position among many keys is inexact, and peers would attend to other keys.
    """

    def drawn(size: float, *shape: int) -> Draw:
        return lambda rng, shapes: size * rng.standard_normal(shape)

    case = mechanism(
        "local_attention", f"{name}-{keys}", direction="both", dtype="float64", flops=4.0 * queries * 64 * 64,
        options={"alignment": "predictive", "window": 32}, query=(1, queries, 64), key=(1, keys, 64),
        value=(1, keys, 64), drawn={"position_weight": drawn(0.125, 64, 64), "position_vector": drawn(0.3, 64)},
    )  # fmt: skip
    return dataclasses.replace(case, size=keys, resized=lambda n: _local(n, min(n, queries), name))


def _relative(T: int) -> BenchCase:
    """T queries after as many keys of memory, 8 heads of 64 features."""
    made = mechanism(
        "relative_attention", "relative-training", direction="both", options={"is_causal": True, "q_offset": T},
        flops=7.0 * 8 * T * 2 * T * 64, query=(1, 8, T, 64), key=(1, 8, 2 * T, 64), value=(1, 8, 2 * T, 64),
        position_key=(8, 2 * T, 64), content_bias=(8, 64), position_bias=(8, 64),
    )  # fmt: skip
    return dataclasses.replace(made, size=T, resized=_relative)


def _sixteen_bits(dtype: str) -> list[BenchCase]:
    """What 16-bit arrays save: one query of many keys, which memory limits, and many queries, which products limit."""
    return [
        case
        for suffix, direction in (("", "forward"), ("training-", "both"))
        for case in (
            sdpa(f"{dtype}-decode-{suffix}{{S}}-d{{D}}", "dtypes", H=16, T=1, S=4096, D=128, dtype=dtype,
                 direction=direction),
            sdpa(f"{dtype}-many-{suffix}{{S}}-d{{D}}", "dtypes", T=1024, D=128, dtype=dtype, direction=direction),
        )
    ]  # fmt: skip


LEVELS = ((64, 64), (32, 32), (16, 16), (8, 8))


def _points(rng: np.random.Generator, shapes: Shapes) -> np.ndarray:
    return rng.random((*shapes["attention_weights"], 2), dtype=np.float32)


def _images(name: str, direction: str) -> BenchCase:
    """Windows of 7 x 7 of an image of 56 x 56, 4 heads of 32 features, as in the first stage of NAT."""
    of = (1, 56, 56, 4, 32)
    return mechanism(
        "neighborhood_attention", name, direction=direction, flops=4.0 * 4 * 56 * 56 * 49 * 32,
        options={"kernel_size": 7}, query=of, key=of, value=of,
    )  # fmt: skip


# Below a minute with all peers, on two cores.
QUICK: tuple[BenchCase, ...] = (
    sdpa("prefill-{S}-d{D}", "prefill", T=384),
    sdpa("prefill-{S}-d{D}", "prefill", T=512, D=128),
    sdpa("causal-{S}-d{D}", "causal", T=512, is_causal=True),
    sdpa("training-{S}-d{D}", "training", T=384, direction="both", is_causal=True),
    sdpa("decode-{S}-d{D}", "decode", B=4, Hkv=2, T=1, S=2048, is_causal=True),
    sdpa("tiny-{S}-d{D}", "tiny", H=2, T=4, D=8),
    sdpa("tiny-{S}-d{D}", "tiny", H=4, T=64, D=32),
    sdpa("tiny-training-{S}-d{D}", "tiny", H=4, T=16, D=16, direction="both", is_causal=True),
    sdpa("window-{S}-d{D}", "special", T=768, is_causal=True, window=(127, 0)),
    sdpa("bias-training-{S}-d{D}", "special", T=256, direction="both", bias=True),
    sdpa("dropout-training-{S}-d{D}", "special", T=256, direction="both", dropout_p=0.1, rng=1),
    sdpa("padded-{S}-d{D}", "special", B=4, T=256, lengths=(1.0, 0.75, 0.5, 0.25)),
    sdpa("mask-{S}-d{D}", "special", T=512, mask=True),
    sdpa("float64-{S}-d{D}", "dtypes", T=384, dtype="float64"),
    sdpa("float16-{S}-d{D}", "dtypes", T=384, dtype="float16"),
    _additive("additive-64", "forward", 64),
    triple("softmax", x=(4096, 512)),
    triple("layer_norm", "layer_norm-training", direction="both", x=(2048, 512), weight=(512,), bias=(512,)),
)  # fmt: skip

# (T, D) of the prefill and of the causal cases, twelve in all; every one forward, and as a training step.
PREFILL = ((384, 64), (512, 128), (1024, 64), (1024, 80), (2048, 128), (4096, 64))
CAUSAL = ((512, 64), (384, 80), (1024, 128), (2048, 64), (2048, 80), (4096, 128))

MORE: tuple[BenchCase, ...] = (
    *[sdpa("prefill-{S}-d{D}", "prefill", T=T, D=D) for T, D in PREFILL[2:]],
    *[sdpa("causal-{S}-d{D}", "causal", T=T, D=D, is_causal=True) for T, D in CAUSAL[1:]],
    *[sdpa("prefill-training-{S}-d{D}", "training", T=T, D=D, direction="both") for T, D in PREFILL],
    *[sdpa("causal-training-{S}-d{D}", "training", T=T, D=D, direction="both", is_causal=True) for T, D in CAUSAL],
    sdpa("backward-{S}-d{D}", "training", T=1024, direction="backward", is_causal=True),
    sdpa("decode-{S}-d{D}", "decode", T=1, S=1024, is_causal=True),
    sdpa("decode-{S}-d{D}", "decode", H=32, Hkv=8, T=1, S=4096, D=128, is_causal=True),
    sdpa("decode-{S}-d{D}", "decode", B=8, T=1, S=8192, is_causal=True),
    sdpa("tiny-{S}-d{D}", "tiny", B=2, H=4, T=16, D=16),
    sdpa("tiny-{S}-d{D}", "tiny", H=1, T=32, D=32),
    sdpa("window-{S}-d{D}", "special", T=8192, is_causal=True, window=(255, 0)),
    sdpa("window-training-{S}-d{D}", "special", T=2048, direction="both", is_causal=True, window=(255, 0)),
    sdpa("bias-training-{S}-d{D}", "special", T=1024, direction="both", bias=True),
    sdpa("dropout-training-{S}-d{D}", "special", T=1024, direction="both", dropout_p=0.1, rng=1),
    sdpa("wide-values-{S}-d{D}", "special", T=512, Dv=128),
    sdpa("wide-values-training-{S}-d{D}", "special", T=512, Dv=128, direction="both"),
    sdpa("softcap-{S}-d{D}", "special", T=512, softcap=20.0),
    sdpa("padded-{S}-d{D}", "special", B=4, T=1024, lengths=(1.0, 0.75, 0.5, 0.25)),
    sdpa("grouped-{S}-d{D}", "special", T=1024, Hkv=2, is_causal=True),
    sdpa("mask-{S}-d{D}", "special", T=1024, mask=True),
    sdpa("float64-training-{S}-d{D}", "dtypes", T=512, dtype="float64", direction="both"),
    sdpa("float16-training-{S}-d{D}", "dtypes", T=512, dtype="float16", direction="both"),
    *[case for dtype in ("float32", "float16", "bfloat16") for case in _sixteen_bits(dtype)],
    _additive("additive_attention", "forward", 256),
    _additive("additive-training", "both", 256),
    _multi_head("multi_head_attention", "forward"),
    _multi_head("multi-head-training", "both"),
    _luong("general", weight=(64, 64)),
    _luong("general", "both", weight=(64, 64)),
    _luong("concat", "both", weight=(64, 128), score_vector=(64,)),
    mechanism("scaled_attention", "scaled-training", direction="both", query=(8, 256, 64),
              key=(8, 256, 64), value=(8, 256, 64), gate=(8, 256), flops=4.0 * 8 * 256 * 256 * 64),
    triple("attentional_hidden_state", "combine-training", group="mechanisms", direction="both", context=(2048, 256),
           hidden=(2048, 256), options={"activation": "tanh"}, flops=4.0 * 2048 * 256 * 256,
           drawn={"context_weight": _weights(256, 256), "hidden_weight": _weights(256, 256)}),
    mechanism("pairwise_attention", "pairwise-training", direction="both", x=(8, 128, 64),
              drawn={"input_weight": _weights(64, 128)}, score_vector=(64,)),
    mechanism("din_attention", "din-training", direction="both", query=(128, 1, 64), key=(128, 64, 64),
              value=(128, 64, 64), drawn={"weight": _weights(64, 192)}, unit_bias=(64,), score_vector=(64,)),
    mechanism("convolutional_attention", "convolutional-training", direction="both", x=(8, 128, 64),
              drawn={"query_weight": _weights(64, 64, 5), "key_weight": _weights(64, 64, 5)}, score_vector=(64,)),
    mechanism("location_attention", "location-training", direction="both", query=(8, 64, 64),
              key=(8, 128, 64), value=(8, 128, 64), score_vector=(64,), location_weight=(64, 16),
              drawn={"location_filter": _weights(16, 31)}),
    _scored_by_lstm("recurrent-training", 64),
    _local(1024),
    _local(4096),
    _relative(256),
    _graph("gatv2", 1),
    _graph("gat", 2),
    # In float64: in float32, peers would differ near kinks and between nearly equal scores.
    mechanism("sparsemax_attention", "sparsemax-attention-training", direction="both", dtype="float64",
              flops=4.0 * 8 * 512 * 512 * 64, query=(1, 8, 512, 64), key=(1, 8, 512, 64), value=(1, 8, 512, 64)),
    mechanism("sigmoid_attention", "sigmoid-attention-training", direction="both",
              flops=4.0 * 8 * 512 * 512 * 64, query=(1, 8, 512, 64), key=(1, 8, 512, 64), value=(1, 8, 512, 64)),
    mechanism("entmax_attention", "entmax-attention-training", direction="both",
              flops=4.0 * 8 * 512 * 512 * 64, query=(1, 8, 512, 64), key=(1, 8, 512, 64), value=(1, 8, 512, 64)),
    mechanism("attend", "attend-training", direction="both", flops=4.0 * 8 * 512 * 512 * 64,
              options={"is_causal": True}, drawn={"modifiers": _slopes},
              query=(1, 8, 512, 64), key=(1, 8, 512, 64), value=(1, 8, 512, 64)),
    mechanism("linear_attention", "linear-attention-training", direction="both", flops=8.0 * 8 * 2048 * 64 * 64,
              query=(1, 8, 2048, 64), key=(1, 8, 2048, 64), value=(1, 8, 2048, 64)),
    mechanism("generalized_delta_rule", "generalized-delta-training", direction="both",
              flops=12.0 * 8 * 512 * 64 * 64, drawn={"a": _small, "b": _small}, query=(1, 8, 512, 64),
              key=(1, 8, 512, 64), value=(1, 8, 512, 64)),
    triple("ragged_attention", "ragged-training", group="mechanisms", direction="both", drawn={"cu_seqlens_q": _bounds},
           flops=4.0 * 8 * 64 * (256**2 + 512**2 + 1280**2), query=(2048, 8, 64), key=(2048, 8, 64),
           value=(2048, 8, 64)),
    mechanism("hard_attention", "top-k-training", direction="both", dtype="float64", flops=4.0 * 8 * 128 * 4096 * 64,
              options={"estimator": "top_k", "k": 32}, query=(1, 8, 128, 64), key=(1, 8, 4096, 64),
              value=(1, 8, 4096, 64)),
    _images("neighborhood", "forward"),
    _images("neighborhood-training", "both"),
    mechanism("shifted_window_attention", "shifted-window-training", direction="both",
              options={"window_size": 6, "shift": 3}, flops=4.0 * 4 * 48 * 48 * 36 * 32, query=(1, 48, 48, 4, 32),
              key=(1, 48, 48, 4, 32), value=(1, 48, 48, 4, 32), relative_bias=(4, 11, 11)),
    mechanism("axial_attention", "axial-training", direction="both", options={"axis": 2},
              flops=4.0 * 4 * 56 * 56 * 56 * 32, query=(1, 56, 56, 4, 32), key=(1, 56, 56, 4, 32),
              value=(1, 56, 56, 4, 32)),
    mechanism("deformable_attention", "deformable-training", direction="both", options={"spatial_shapes": LEVELS},
              flops=10.0 * 1024 * 8 * 16 * 32, drawn={"sampling_locations": _points},
              attention_weights=(1, 1024, 8, 4, 4), value=(1, 5440, 8, 32)),
    mechanism("linformer_attention", "linformer-training", direction="both", flops=8.0 * 8 * 2048 * 256 * 64,
              query=(1, 8, 2048, 64), key=(1, 8, 2048, 64), value=(1, 8, 2048, 64),
              drawn={"key_projection": _weights(256, 2048)}),
    mechanism("nystrom_attention", "nystrom-training", direction="both", options={"num_landmarks": 64},
              flops=8.0 * 8 * 2048 * 64 * 64, query=(1, 8, 2048, 64), key=(1, 8, 2048, 64), value=(1, 8, 2048, 64)),
    mechanism("lsh_attention", "lsh-training", direction="both", options={"chunk_size": 64},
              flops=4.0 * 8 * 2 * 2048 * 128 * 64, query=(1, 8, 2048, 64), value=(1, 8, 2048, 64),
              drawn={"rotations": _weights(2, 64, 32)}),
    mechanism("latent_attention", "latent-decode", flops=2.0 * 8 * 4096 * (576 + 512), latent=(1, 4096, 576),
              query=(1, 8, 1, 192), key_up=(8, 128, 512), value_up=(8, 128, 512)),
    triple("differential_attention", "differential-training", group="mechanisms", direction="both",
           flops=4.0 * 8 * 512 * 512 * (32 + 64), options={"is_causal": True}, text="B1 H4 T512 D32/64",
           drawn={"query": _normal(1, 8, 512, 32), "key": _normal(1, 8, 512, 32), "value": _normal(1, 4, 512, 64),
                  "lambd": lambda rng, shapes: np.full(4, 0.5, np.float32)}),
    mechanism("forgetting_attention", "forgetting-training", direction="both", flops=4.0 * 8 * 512 * 512 * 64,
              options={"is_causal": True}, drawn={"log_forget": _log_gates},
              query=(1, 8, 512, 64), key=(1, 8, 512, 64), value=(1, 8, 512, 64)),
    mechanism("block_topk_attention", "block-top-k-training", direction="both", flops=4.0 * 8 * 2048 * 8 * 64 * 64,
              options={"top_k": 8, "is_causal": True, "by_block": True}, query=(1, 8, 2048, 64),
              key=(1, 8, 2048, 64), value=(1, 8, 2048, 64)),
    triple("softmax", "softmax-training", direction="both", x=(4096, 512)),
    triple("sparsemax", x=(512, 4096)),
    triple("sparsemax", "sparsemax-training", direction="both", x=(512, 4096)),
    triple("entmax", x=(512, 4096)),
    triple("entmax", "entmax-training", direction="both", x=(512, 4096)),
    triple("log_softmax", x=(4096, 512)),
    _segments("segment-softmax-training", 1),
    _segments("segment-softmax-8-training", 8),
    triple("layer_norm", x=(4096, 1024), weight=(1024,), bias=(1024,)),
    triple("rms_norm", x=(4096, 1024), weight=(1024,)),
    triple("linear", x=(1024, 1024), weight=(4096, 1024), bias=(4096,)),
    triple("linear", "linear-training", direction="both", x=(1024, 1024), weight=(4096, 1024), bias=(4096,)),
    triple("gelu", x=(1024, 4096)),
    triple("gelu", "gelu-training", direction="both", x=(1024, 4096)),
    triple("silu", x=(1024, 4096)),
    triple("relu", x=(1024, 4096)),
    triple("tanh", x=(1024, 4096)),
    triple("sigmoid", x=(1024, 4096)),
    triple("attention_partial", flops=PART_FLOPS, query=(1, 8, 512, 64), key=(1, 8, 256, 64), value=(1, 8, 256, 64)),
    triple("merge_partials", drawn={"partials": _parts}, text="4 parts of B1 H8 T512 D64"),
    triple("embedding", "embedding-training", direction="both", drawn={"indices": _indices}, weight=(8192, 256)),
    triple("rotary", x=(4, 16, 1024, 64)),
    triple("rotary", "rotary-pairs", x=(4, 16, 1024, 64), options={"interleaved": True}),
    triple("dropout", options={"p": 0.1, "rng": 1}, x=(1024, 1024)),
    triple("cross_entropy", "loss-training", direction="both", drawn={"targets": _targets}, logits=(512, 8192)),
    triple("causal_conv1d", x=(4, 1024, 512), weight=(512, 4), bias=(512,), flops=8.0 * 4 * 1024 * 512),
    triple("conv1d", "conv1d-training", direction="both", flops=CONV_FLOPS, x=(16, 256, 128), weight=(128, 128, 5)),
    triple(
        "conv2d",
        "conv2d-patches",
        options={"stride": 16, "padding": "valid"},
        flops=2.0 * 8 * 196 * 768 * 192,
        x=(8, 224, 224, 3),
        weight=(192, 3, 16, 16),
        bias=(192,),
    ),
    triple("max_over_time", x=(32, 256, 128)),
    _recurrent("rnn", 1),
    _recurrent("lstm", 4),
    _recurrent("gru", 3),
)  # fmt: skip

# Too long for the full set: only by name (--only).
LONG: tuple[BenchCase, ...] = (
    sdpa("long-training-{S}-d{D}", "training", T=16384, direction="both"),
    _scored_by_lstm("long-recurrent", 256),
    _local(32768, name="long-local"),
)

CASES: tuple[BenchCase, ...] = tuple(sorted(QUICK + MORE + LONG, key=lambda case: list(GROUPS).index(case.group)))

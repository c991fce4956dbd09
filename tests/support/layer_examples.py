"""Calls of every layer and model, with everything that can have a gradient: for tests of all of them."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa
from attnarray import layers, models

RNG = np.random.default_rng(11)
B, T, S, E, H = 2, 4, 5, 8, 2
LENGTHS = [S, 3]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


EXTRAS = {"bias", "memory_bias", "sinks", "kv_lengths", "lengths", "source_lengths", "is_causal"}


class Example(NamedTuple):
    """A layer and the arguments of its `fwd` besides the parameters, in float64."""

    layer: Any
    arguments: dict[str, Any]

    def without_extras(self) -> Example:
        """The same call without biases, sinks and lengths: its results may be views of the arguments."""
        return self._replace(arguments={name: x for name, x in self.arguments.items() if name not in EXTRAS})

    def params(self) -> Any:
        """Parameters that are nowhere 0 or 1, so that wrong gradients show."""
        fresh, rng = self.layer.init(aa.Philox(1), "float64"), np.random.default_rng(2)
        return aa.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), fresh)


X, KEY, MEMORY = normal(B, T, E), normal(B, S, 6), normal(B, S, E)
QUERY = normal(B, T, 5)
PAIR = {"query": QUERY, "key": KEY, "value": normal(B, S, 3), "bias": normal(T, S), "kv_lengths": LENGTHS}
OWN = {"query": QUERY, "key": KEY, "bias": normal(B, 1, S)}  # keys are the values
TOKENS = RNG.integers(7, size=(B, T))
BLOCKS = {"dim": E, "num_layers": 2, "num_heads": H}
OF_SELF = {"x": X, "bias": normal(H, 1, T), "is_causal": True, "kv_lengths": [T, 3]}
OF_BOTH = {"x": X, "memory": MEMORY, "bias": normal(T, T), "memory_bias": normal(B, 1, T, 1)}
DROPPING = {"dropout": 0.2, "attention_dropout": 0.3, "hidden_dropout": 0.1}
SEQ2SEQ = {"source_vocab_size": 7, "target_vocab_size": 6, "dim": 3, "hidden_dim": 4}

EXAMPLES: dict[str, list[Example]] = {
    "Linear": [Example(layers.Linear(E, 3), {"x": X})],
    "LayerNorm": [Example(layers.LayerNorm(E), {"x": X})],
    "RMSNorm": [Example(layers.RMSNorm(E), {"x": X})],
    "FeedForward": [
        Example(layers.FeedForward(E, 6), {"x": X}),
        Example(layers.FeedForward(E, 6, "silu", gated=True, dropout=0.2), {"x": X, "rng": aa.Philox(3)}),
    ],
    "MixtureOfExperts": [
        Example(layers.MixtureOfExperts(E, 6, num_experts=3), {"x": X}),
        Example(layers.MixtureOfExperts(E, 6, 4, 3, renormalize=False, bias=True), {"x": X}),
        Example(layers.MixtureOfExperts(E, 6, 2, 1, shared_dim=5), {"x": X}),
    ],
    "Embedding": [Example(layers.Embedding(7, E), {"indices": TOKENS})],
    "MultiHeadAttention": [
        Example(layers.MultiHeadAttention(E, H), {"query": X, "bias": normal(B, H, T, T), "sinks": normal(H)}),
        Example(
            layers.MultiHeadAttention(E, 4, 2, key_input_dim=6, value_input_dim=3),
            {"query": X, "key": KEY, "value": normal(B, S, 3), "bias": normal(4, 1, S), "sinks": normal(4)},
        ),
        Example(layers.MultiHeadAttention(E, H), {"query": X, "key": MEMORY}),
        Example(
            layers.MultiHeadAttention(E, H, rotary=aa.Rotary(), qk_norm="head", gate="element", out_bias=False),
            {"query": X, "is_causal": True},
        ),
        Example(layers.MultiHeadAttention(E, 4, 2, qk_norm="all", gate="head"), {"query": X, "kv_lengths": [T, 3]}),
        Example(layers.MultiHeadAttention(E, H, cosine=True), {"query": X, "key": MEMORY, "bias": normal(H, T, S)}),
    ],
    "WindowAttention": [
        Example(layers.WindowAttention(E, H, 3, shift=2), {"x": normal(B, 6, 9, E)}),
        Example(layers.WindowAttention(E, H, 3, "neighborhood", relative_bias=False), {"x": normal(B, 4, 5, E)}),
    ],
    "WindowBlock": [
        Example(layers.WindowBlock(E, H, 2, shift=1, hidden_dim=5), {"x": normal(B, 4, 6, E)}),
        Example(layers.WindowBlock(E, H, 3, "neighborhood", dilation=2, hidden_dim=5), {"x": normal(B, 6, 7, E)}),
    ],
    "BahdanauAttention": [Example(layers.BahdanauAttention(5, 6, 4), given) for given in (PAIR, OWN)],
    "HardAttention": [
        Example(layers.HardAttention(5, 6, 4, "gumbel"), {**PAIR, "noise": normal(B, T, S)}),
        Example(layers.HardAttention(5, 6, 4, "top_k", k=2), OWN),
    ],
    "LocalAttention": [
        Example(layers.LocalAttention(5, 6, 2), PAIR),
        Example(layers.LocalAttention(6, 6, 1, "monotonic", score="dot"), {**OWN, "query": normal(B, T, 6)}),
    ],
    "LocationAttention": [
        Example(layers.LocationAttention(5, 6, 4, 3, 3, cumulative), {**given, "previous": normal(B, S)})
        for cumulative, given in ((False, PAIR), (True, OWN))
    ],
    "LuongAttention": [
        Example(layers.LuongAttention(5, 6, value_dim=3, output=True), PAIR),
        Example(layers.LuongAttention(5, 6, "concat"), OWN),
        Example(layers.LuongAttention(E, E, "dot"), {"query": X, "key": MEMORY}),
    ],
    "RecurrentAttention": [
        Example(layers.RecurrentAttention(5, 6, 3, 4), {**PAIR, "h0": normal(B, T, 3), "c0": normal(B, T, 3)}),
        Example(layers.RecurrentAttention(5, 5, 3, 4), {"query": QUERY, "bias": normal(T, T)}),
    ],
    "PairwiseAttention": [
        Example(
            layers.PairwiseAttention(5, 4, 3),
            {"x": QUERY, "hidden": normal(B, T, 3), "memory": normal(B, S, 5), "value": normal(B, S, 2),
             "bias": normal(T, S)},
        ),
        Example(layers.PairwiseAttention(5, 4), {"x": QUERY, "bias": normal(T, T)}),
    ],
    "ConvolutionalAttention": [
        Example(layers.ConvolutionalAttention(5, 4, 3), {"x": QUERY, "value": normal(B, T, 2), "bias": normal(T, T)}),
        Example(layers.ConvolutionalAttention(5, 4, 2, "dot", "causal"), {"x": QUERY, "bias": normal(1, T)}),
    ],
    "RelativeAttention": [
        Example(
            layers.RelativeAttention(E, H),
            {"x": X, "memory": normal(B, 3, E), "bias": normal(H, T, T + 3), "sinks": normal(H)},
        )
    ],
    "ScaledAttention": [
        Example(layers.ScaledAttention(6), {**PAIR, "query": normal(B, T, 6)}),
        Example(layers.ScaledAttention(E, gate=False, learned_scale=False), {"query": X, "key": MEMORY}),
    ],
    "GraphAttention": [
        Example(
            layers.GraphAttention(5, 3, 2, edge_dim=2),
            {"x": normal(4, 5), "edges": np.array([[0, 1, 3, 2], [1, 0, 1, 2]]), "edge_features": normal(4, 2)},
        ),
        Example(layers.GraphAttention(E, E, 1), {"x": X[0], "edges": np.array([[0, 1, 3, 2], [1, 0, 1, 2]])}),
    ],
    "LatentAttention": [
        Example(layers.LatentAttention(E, 3, 5, 4, 2, 6), {"x": X, "bias": normal(3, T, T), "sinks": normal(3)}),
        Example(
            layers.LatentAttention(E, 2, 5, 4, 2, query_latent_dim=3, bias=True),
            {"x": X, "is_causal": True, "kv_lengths": [T, 3]},
        ),
    ],
    "DifferentialAttention": [
        Example(layers.DifferentialAttention(E, H), {"x": X, "bias": normal(2 * H, 1, T), "sinks": normal(2 * H)}),
        Example(
            layers.DifferentialAttention(E, H, 1, 6, 0.3, aa.Rotary(), bias=True),
            {"x": X, "is_causal": True, "kv_lengths": [T, 3]},
        ),
    ],
    "LinearAttention": [
        Example(layers.LinearAttention(E, H, feature_map="elu+1", normalize=True), {"x": X}),
        Example(layers.LinearAttention.retnet(E, H), {"x": X, "lengths": [T, 3]}),
        Example(layers.LinearAttention.gla(E, H, decay_rank=3), {"x": X}),
        Example(layers.LinearAttention.delta_net(E, H), {"x": X[0]}),
        Example(layers.LinearAttention.gated_delta_net(E, 4, num_kv_heads=2, value_dim=3), {"x": X}),
        Example(layers.LinearAttention.kda(E, H), {"x": X}),
        Example(layers.LinearAttention.kda(E, H, num_value_heads=6, key_dim=3, value_dim=5), {"x": X}),
        Example(layers.LinearAttention.retnet(E, H, num_value_heads=4, norm_eps=0.1), {"x": X}),
        Example(layers.LinearAttention.mamba2(E, H, key_dim=3), {"x": X}),
    ],
    "TransformerBlock": [
        Example(layers.TransformerBlock(E, H, 6), OF_SELF),
        Example(layers.TransformerBlock(E, H, 6, cross=True, pre_norm=False, recompute=True), OF_BOTH),
        Example(layers.TransformerBlock(E, H, 6, cross=True, **DROPPING), {**OF_BOTH, "rng": aa.Philox(3)}),
        Example(layers.TransformerBlock(E, H, 6, recompute=True), {"x": X}),
    ],
    "Encoder": [
        Example(models.Encoder(**BLOCKS, hidden_dim=6), OF_SELF),
        Example(models.Encoder(**BLOCKS, hidden_dim=6, recompute=True, **DROPPING), {**OF_SELF, "rng": aa.Philox(3)}),
        Example(models.Encoder(E, 1, H, 6, final_norm=False), {"x": X}),
        Example(models.Encoder(E, 1, H, 6, pre_norm=False), {"x": X}),
    ],
    "Decoder": [
        Example(models.Decoder(**BLOCKS, hidden_dim=6), OF_BOTH),
        Example(models.Decoder(**BLOCKS, hidden_dim=6, recompute=True, **DROPPING), {**OF_BOTH, "rng": aa.Philox(3)}),
    ],
    "Transformer": [
        Example(
            models.Transformer(7, 6, S, E, 1, H, 6, dropout=0.1),
            {"source": RNG.integers(7, size=(B, S)), "target": RNG.integers(6, size=(B, T)), "rng": aa.Philox(3)},
        )
    ],
    "TransformerXL": [
        Example(
            models.TransformerXL(7, 3, E, 1, H, hidden_dim=6, dropout=0.0),
            {"tokens": TOKENS, "memory": (normal(B, 3, E),)},
        ),
        Example(models.TransformerXL(7, 6, E, 1, H, hidden_dim=6, pre_norm=True, dropout=0.0), {"tokens": TOKENS}),
    ],
    "GPT": [Example(models.GPT(7, T, E, 1, H, 6, positions=positions), {"tokens": TOKENS})
            for positions in ("learned", "alibi")],
    "EncoderDecoder": [
        Example(
            models.EncoderDecoder(7, S, E, 1, H, hidden_dim=6, positions=positions, buckets=8, max_distance=6),
            {"source": TOKENS, "target": TOKENS[:, :3], "source_lengths": [T, 3]},
        )
        for positions in ("learned", "relative")
    ],
    "ViT": [
        Example(
            models.ViT((4, 6), (2, 3), E, 1, H, 1, 6, dropout=0.1, pooler=True, num_labels=labels),
            {"images": normal(B, 4, 6, 1), "rng": aa.Philox(3)},
        )
        for labels in (3, None)
    ],
    "SentenceEncoder": [
        Example(
            models.SentenceEncoder(models.BERT(7, T, E, 1, H, 6, mask_head=False, pooler=False)),
            {"tokens": TOKENS, "lengths": [T, 3]},
        )
    ],
    "BERT": [Example(models.BERT(7, T, E, 1, H, 6, mask_head=False, pooler=pooler), {"tokens": TOKENS})
             for pooler in (True, False)]
    + [Example(models.BERT(7, T, E, 2, H, 6, types=None, mask_head=False, pooler=False, positions="rotary",
                           windows=(None, 1), pre_norm=True, norm="layer_no_bias", gated=True, bias=False),
               {"tokens": TOKENS})],
    "Seq2Seq": [
        Example(
            models.Seq2Seq(**SEQ2SEQ, attention=layers.LocationAttention(4, 4, 3, 2, 3), cell="lstm"),
            {"source": RNG.integers(7, size=(B, S)), "target": RNG.integers(6, size=(B, T)), "source_lengths": LENGTHS},
        ),
        Example(
            models.Seq2Seq(**SEQ2SEQ, attention=layers.BahdanauAttention(4, 4, 3)),
            {"source": RNG.integers(7, size=(B, S)), "target": RNG.integers(6, size=(B, T))},
        ),
    ],
    "PatchClassifier": [
        Example(models.PatchClassifier((4, 6), 2, 3, 2, E, 1, H, 6), {"images": normal(B, 4, 6, 2)}),
    ],
}  # fmt: skip
CALLS = [(f"{name}-{n}", example) for name, found in EXAMPLES.items() for n, example in enumerate(found)]


def every_layer() -> set[str]:
    """The names of all public layers and models."""
    found = {name: getattr(module, name) for module in (layers, models) for name in module.__all__}
    return {name for name, value in found.items() if hasattr(value, "fwd") and hasattr(value, "bwd")}


def parameters(function: Callable[..., Any]) -> set[str]:
    """The names of all parameters, and those of the options that stand for `**options`."""
    names: set[str] = set()
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        if typing.get_origin(hint) is typing.Unpack:
            names |= set(typing.get_type_hints(typing.get_args(hint)[0]))
        elif name != "return":
            names.add(name)
    return names

"""Calls of all functions that take a mask, and which entries of their arrays and cotangents are masked."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa
from tests.support.masked_attention import NOTHING, Masked, Sizes, attention_calls, normal

__all__ = ["Masked", "Sizes", "calls", "normal"]


def calls(sizes: Sizes = Sizes()) -> dict[str, Masked]:  # noqa: B008 - a tuple of integers
    """All calls by their names. The sizes are those of attention; other functions have few entries in any case."""
    return {**attention_calls(sizes), **_recurrent(sizes), **_graph(sizes),
            **_linear(sizes), **_merge(sizes), **_softmax(sizes), **_others(sizes)}  # fmt: skip


def _recurrent(sizes: Sizes) -> dict[str, Masked]:
    B, _, _, T, _, D, _, A = sizes
    mask = (np.arange(T) + np.arange(B)[:, None]) % 3 > 0
    mask[1:2] = False
    made = {}
    for name, gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
        arrays = {
            "x": normal(B, T, D), "weight_ih": normal(gates * A, D), "weight_hh": normal(gates * A, A),
            "bias_ih": normal(gates * A), "bias_hh": normal(gates * A), "h0": normal(B, A), "mask": mask,
        }  # fmt: skip
        hidden = {"x": ~mask[..., None]}
        for options in ({}, {"reverse": True}):
            made[f"{name} {options}"] = Masked(
                getattr(aa, name), arrays, options, hidden, (~mask[..., None], NOTHING, NOTHING)
            )
    made["rnn relu"] = made["rnn {}"]._replace(options={"nonlinearity": "relu"})
    return made


def _linear(sizes: Sizes) -> dict[str, Masked]:
    """Steps past the lengths, of which one is 0."""
    B, H, Hkv, _, T, D, E, _ = sizes
    lengths = np.where(np.arange(B) % 2, 0, T // 2 + 1) if T else np.zeros(B, np.int64)
    past = (np.arange(T) >= lengths[:, None])[:, None]  # (B, 1, T)
    rng, key = np.random.default_rng(7), normal(B, Hkv, T, D)
    arrays = {"query": normal(B, H, T, D), "key": key / np.maximum(np.linalg.norm(key, axis=-1, keepdims=True), 1.0),
              "value": normal(B, Hkv, T, E), "lengths": lengths}  # fmt: skip
    hidden = {"query": past[..., None], "key": past[..., None], "value": past[..., None]}
    more = {"decay": -rng.random((B, Hkv, T)), "beta": rng.random((B, Hkv, T))}
    by_dim = {**more, "decay": -rng.random((B, Hkv, T, D))}
    made = {}
    for label, extra, options in (
        ("normalized", {}, {"normalize": True, "feature_map": "exp"}),
        ("gated delta", more, {"rule": "gated_delta"}),
        ("gated delta by dim", by_dim, {"rule": "gated_delta", "chunk_size": 4}),
    ):
        own = {name: past[..., None] if array.ndim == 4 else past for name, array in extra.items()}
        results = past[..., None], NOTHING
        made[f"linear_attention, {label}"] = Masked(
            aa.linear_attention, {**arrays, **extra}, options, {**hidden, **own}, results
        )
    given = {**arrays, "a": -arrays["key"], "b": 0.5 * arrays["key"], "decay": by_dim["decay"]}
    everywhere = {name: past[..., None] for name in given if name != "lengths"}
    made["generalized_delta_rule"] = Masked(
        aa.generalized_delta_rule, given, {"chunk_size": 4}, everywhere, (past[..., None], NOTHING)
    )
    return made


def _graph(sizes: Sizes) -> dict[str, Masked]:
    """Node 3 has no edge, that to node 4 is masked, and node 2 is the source of a masked edge only."""
    B, H, _, T, S, D, E, _ = sizes
    edges = np.array([[0, 1, 2, 0, 1], [0, 0, 1, 1, 4]])
    edges = edges[:, (edges[0] < S) & (edges[1] < T)]
    mask = (edges[0] != 2) & (edges[1] != 4)
    read = np.isin(np.arange(S), edges[0][mask])[:, None, None]
    told = np.isin(np.arange(T), edges[1][mask])[:, None, None]
    made = {}
    for score, parts in (("gatv2", 1), ("gat", 3)):
        for batch in ((), (B,)):
            arrays = {
                "query": normal(*batch, T, H, D), "key": normal(*batch, S, H, D), "value": normal(*batch, S, H, E),
                "score_vector": normal(H, parts * D), "edges": edges,
                "edge_features": normal(*batch, edges.shape[1], H, D),
            }  # fmt: skip
            hidden = {"query": ~told, "key": ~read, "value": ~read, "edge_features": ~mask[:, None, None]}
            made[f"graph_attention, {score}, {len(batch)} batch axes"] = Masked(
                aa.graph_attention, arrays, {"score": score, "edge_mask": mask}, hidden, (~told,)
            )
    return made


def _merge(sizes: Sizes) -> dict[str, Masked]:
    """Parts without keys, and rows to which no part has any."""
    B, H, _, T, _, _, E, _ = sizes
    made = {}
    for layout in ("BHTD", "BTHD"):
        lse = normal(2, B, H, T)
        lse[0, :, :, 1:2], lse[1, :, ::2], lse[1, :, :, 1:2] = -math.inf, -math.inf, -math.inf
        swapped = np.moveaxis(lse, -1, -2) if layout == "BTHD" else lse
        empty, out = swapped == -math.inf, normal(*swapped.shape, E)

        def merged(out: Any, lse: Any = lse, layout: str = layout) -> Any:
            return merged_fwd(out, lse, layout)[0]

        def merged_fwd(out: Any, lse: Any = lse, layout: str = layout) -> Any:
            parts = [aa.Partial(*part) for part in zip(out, lse.astype(out.dtype), strict=True)]
            return aa.merge_partials_fwd(parts, layout=layout)

        def merged_bwd(dout: Any, ctx: Any) -> Any:
            grads = aa.merge_partials_bwd(dout, ctx).partials
            return Merged(np.stack([part.out for part in grads]), np.stack([part.lse for part in grads]))

        merged.fwd, merged.bwd = merged_fwd, merged_bwd
        results = empty.all(axis=0)[..., None], (lse == -math.inf).all(axis=0)
        made[f"merge_partials, {layout}"] = Masked(merged, {"out": out}, {}, {"out": empty[..., None]}, results)
    return made


class Merged(NamedTuple):
    out: np.ndarray
    lse: np.ndarray


def _softmax(sizes: Sizes) -> dict[str, Masked]:
    B, _, _, T, S, _, _, A = sizes
    mask = np.random.default_rng(3).random((B, T, S)) < 0.5
    mask[:1, 1:3], mask[:, :, 3:4] = False, False
    made = {}
    for name in ("softmax", "log_softmax", "sparsemax", "entmax"):
        for axis in (-1, 1):
            made[f"{name}, axis {axis}"] = Masked(
                getattr(aa, name), {"x": normal(B, T, S), "mask": mask}, {"axis": axis}, {"x": ~mask}, (~mask,)
            )
    made["entmax, alpha 1.2"] = made["entmax, axis -1"]._replace(options={"alpha": 1.2})
    made["dropout"] = made["softmax, axis -1"]._replace(function=aa.dropout, options={"p": 0.5})
    segments = np.arange(S) % 3 * 2
    for columns in (1, A, 8):
        edges = np.random.default_rng(4).random((B, S, columns)) < 0.5
        edges[:1, segments == 2] = False
        made[f"segment_softmax, {columns} columns"] = Masked(
            aa.segment_softmax, {"x": normal(B, S, columns), "segments": segments, "mask": edges}, {"count": 6},
            {"x": ~edges}, (~edges,),
        )  # fmt: skip
    return made


def _others(sizes: Sizes) -> dict[str, Masked]:
    B, _, _, T, S, *_ = sizes
    ignored = (np.arange(T) + np.arange(B)[:, None]) % 2 == 0
    logits = {"logits": normal(B, T, max(S, 1)), "targets": np.where(ignored, -100, 0)}
    return {
        f"cross_entropy, {reduction}": Masked(
            aa.cross_entropy, logits, {"reduction": reduction, "label_smoothing": smoothing},
            {"logits": ignored[..., None]}, (ignored if reduction == "none" else NOTHING,),
        )
        for reduction, smoothing in (("mean", 0.0), ("sum", 0.1), ("none", 0.1))
    }  # fmt: skip

"""The course: six lectures of exercises, in order."""

from __future__ import annotations

import importlib
from functools import cache

from attnarray.learn.exercise import Exercise

LECTURES: dict[str, tuple[str, ...]] = {
    "Softmax and the chain rule": ("softmax", "softmax_bwd", "log_softmax_bwd", "cross_entropy_bwd", "linear_bwd"),
    "One head of attention": (
        "attention",
        "weighted_sum_bwd",
        "scores_bwd",
        "attention_bwd",
        "attention_bwd_from_lse",
        "repair_cross_attention_bwd",
    ),
    "Masks, heads, dropout": (
        "causal_mask",
        "window_mask",
        "masked_softmax",
        "masked_attention_bwd",
        "bias_bwd",
        "softcap_bwd",
        "dropout_attention_bwd",
        "grouped_heads_bwd",
        "repair_softcap_attention_bwd",
    ),
    "Attention without the matrix of scores": (
        "merge_parts",
        "online_softmax",
        "streaming_attention",
        "attention_kernel",
        "blockwise_attention_bwd",
    ),
    "The rest of a block": (
        "rms_norm_bwd",
        "layer_norm_bwd",
        "repair_layer_norm_bwd",
        "gelu_bwd",
        "embedding_bwd",
        "rotary_bwd",
        "gated_feed_forward_bwd",
    ),
    "A GPT block": ("split_heads_bwd", "multi_head_bwd", "pre_norm_bwd", "repair_gpt_block_bwd", "gpt_block_bwd"),
}
NAMES = tuple(name for names in LECTURES.values() for name in names)


@cache
def load(name: str) -> Exercise:
    """The exercise of that name; its module is imported now."""
    exercise: Exercise = importlib.import_module(f"attnarray.learn.exercises.{name}").EXERCISE
    return exercise


def lecture_number(name: str) -> int:
    """The lecture of an exercise, counted from 1."""
    return next(n for n, names in enumerate(LECTURES.values(), 1) if name in names)


def following(name: str) -> str | None:
    """The exercise after that one; None after the last."""
    n = NAMES.index(name) + 1
    return NAMES[n] if n < len(NAMES) else None

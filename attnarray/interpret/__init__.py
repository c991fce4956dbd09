"""Seeing what attention does: statistics, attributions and interventions, from the contexts of forward passes.

Weights are recomputed some rows at a time, so that no array of all pairs of positions is held. matplotlib and networkx
are imported by the functions that need them.
"""

from attnarray.hooks import backward_hook, forward_hook
from attnarray.interpret.contexts import attention_contexts
from attnarray.interpret.flow import attention_flow, attention_rollout
from attnarray.interpret.gradients import (
    Attributions,
    attention_cotangents,
    gradient_times_attention,
    integrated_gradients,
    relevance,
)
from attnarray.interpret.heads import head_importance, induction_scores, previous_token_scores, without_heads
from attnarray.interpret.page import HTMLView, html
from attnarray.interpret.plots import (
    plot_alignment,
    plot_arcs,
    plot_edges,
    plot_heads,
    plot_patches,
    plot_weights,
)
from attnarray.interpret.states import causal_trace, logit_lens
from attnarray.interpret.statistics import AttentionStatistics, TopKeys, attention_statistics, top_keys

__all__ = [
    "AttentionStatistics",
    "Attributions",
    "HTMLView",
    "TopKeys",
    "attention_contexts",
    "attention_cotangents",
    "attention_flow",
    "attention_rollout",
    "attention_statistics",
    "backward_hook",
    "causal_trace",
    "forward_hook",
    "gradient_times_attention",
    "head_importance",
    "html",
    "induction_scores",
    "integrated_gradients",
    "logit_lens",
    "plot_alignment",
    "plot_arcs",
    "plot_edges",
    "plot_heads",
    "plot_patches",
    "plot_weights",
    "previous_token_scores",
    "relevance",
    "top_keys",
    "without_heads",
]


def __dir__() -> list[str]:
    return __all__

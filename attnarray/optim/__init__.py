"""Optimizers as pure functions on trees of parameters: (params, grads, state) -> (params, state). Nothing is mutated.

16-bit parameters are updated in float32 and keep their dtype; the states are float32 for them.
"""

from attnarray.optim.adam import AdamWState, adamw, adamw_init
from attnarray.optim.clipping import clip_by_global_norm, global_norm
from attnarray.optim.gradient_descent import SGDState, sgd, sgd_init
from attnarray.optim.schedules import warmup_cosine
from attnarray.tree import shorten_reprs

__all__ = [
    "AdamWState",
    "SGDState",
    "adamw",
    "adamw_init",
    "clip_by_global_norm",
    "global_norm",
    "sgd",
    "sgd_init",
    "warmup_cosine",
]

shorten_reprs()


def __dir__() -> list[str]:
    return __all__

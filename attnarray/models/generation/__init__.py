"""Text generation: greedy, by sampling, by beam search."""

from attnarray.models.generation.autoregressive import generate, stream
from attnarray.models.generation.beam import BeamResult, beam_search
from attnarray.models.generation.processors import penalize_repetition
from attnarray.models.generation.sampling import draw, keep_top_k, keep_top_p, with_temperature

__all__ = [
    "BeamResult",
    "beam_search",
    "draw",
    "generate",
    "keep_top_k",
    "keep_top_p",
    "penalize_repetition",
    "stream",
    "with_temperature",
]

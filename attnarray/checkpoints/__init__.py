"""Checkpoints: published models from and to folders, and the state of a training run, saved whole or not at all.

They need the package safetensors: pip install 'attnarray[checkpoints]'.
"""

from attnarray.checkpoints.config import Unsupported
from attnarray.checkpoints.names import Family, Names, Tensor
from attnarray.checkpoints.pretrained import load_pretrained, save_pretrained
from attnarray.checkpoints.state import load_state, save_state

__all__ = [
    "Family",
    "Names",
    "Tensor",
    "Unsupported",
    "load_pretrained",
    "load_state",
    "save_pretrained",
    "save_state",
]


def __dir__() -> list[str]:
    return __all__

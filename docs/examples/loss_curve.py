"""The loss of each step of a training, as a curve."""

from __future__ import annotations

from typing import Any

import numpy as np


def draw_loss(axes: Any, losses: list[float], color: str, label: str) -> None:
    """Every loss, faint, and their mean over a fortieth of the steps."""
    steps = np.arange(1, len(losses) + 1)
    span = max(len(steps) // 40, 1)
    axes.plot(steps, losses, color=color, linewidth=0.5, alpha=0.25)
    smooth = np.convolve(losses, np.ones(span) / span, mode="valid")
    axes.plot(steps[span - 1 :], smooth, color=color, label=f"{label}, mean of {span} steps")

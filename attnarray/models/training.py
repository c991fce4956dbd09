"""What every model asks for before it is trained."""

from __future__ import annotations

from attnarray.random import Philox


def check_training(drops: bool, rng: Philox | None, model: str) -> None:
    """Check that there is an `rng` where something is to be dropped."""
    if drops and rng is None:
        raise ValueError(
            f"`rng` is None, but this {model} has something to drop or draw in training: pass "
            "rng=attnarray.Philox(seed), a new one for each step. For inference call the model itself; to train "
            "without, set its dropouts to 0.0 by dataclasses.replace."
        )

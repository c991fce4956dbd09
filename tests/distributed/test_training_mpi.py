"""The recipe of training on several processes, on processes of an MPI: losses and checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.mpi import run_ranks


def losses(size: int, steps: int, folder: Path, context_ranks: int = 1) -> list[float]:
    program = ["docs/examples/data_parallel.py", "--steps", str(steps), "--folder", str(folder)]
    program += ["--context-ranks", str(context_ranks)]
    done = run_ranks(size, *program)
    assert done.returncode == 0, done.stderr
    return [float(loss) for loss in re.findall(r"step \d+: ([\d.]+)", done.stdout)]


@pytest.mark.distributed
def test_the_recipe_has_the_losses_of_one_process(tmp_path: Path) -> None:
    alone = losses(1, 13, tmp_path / "alone")
    divided = [*losses(2, 10, tmp_path / "divided"), *losses(4, 13, tmp_path / "divided", 2)]
    assert len(alone) == 13
    np.testing.assert_allclose(divided, alone, rtol=1e-4)  # float32: sums over the batch in another order

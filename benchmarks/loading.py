"""The memory that loading a model takes: the largest resident memory of a process, over the bytes of its weights.

    python -m benchmarks.loading

Each model is saved to a temporary folder in bfloat16 and in float32, and loaded by a process of its own, which also
reads what it held before, from /proc (Linux), and then sums all weights; the shape is that of SmolLM2-135M.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import attnarray as aa

PROGRAM = """
import re, sys
from pathlib import Path
import attnarray as aa
from attnarray.checkpoints import load_pretrained
from attnarray.checkpoints.files import safetensors
import ml_dtypes
aa.models.GPT, safetensors()
def largest():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the largest so far is forgotten
before = largest()
model, params = aa.models.from_pretrained(sys.argv[1])
weights = sum(leaf.nbytes for _, leaf in aa.tree.flatten(params))
sums = [leaf.sum() for _, leaf in aa.tree.flatten(params)]  # every page is read
print((largest() - before) / weights, weights, params["token"]["weight"].dtype.name)
"""


def model() -> aa.models.GPT:
    """The shape of SmolLM2-135M."""
    return aa.models.GPT(
        49152, 8192, 576, 30, 9, 1536, positions="rotary", norm="rms", activation="silu", gated=True, bias=False,
        num_kv_heads=3,
    )  # fmt: skip


def measure(dtype: str) -> dict[str, object]:
    """The result of one dtype."""
    made = model()
    params = aa.tree.map(lambda leaf: leaf.astype(aa.asarray(np.zeros(1), dtype).dtype), made.init(aa.Philox(0)))
    with tempfile.TemporaryDirectory() as folder:
        aa.checkpoints.save_pretrained(folder, made, params)
        done = subprocess.run([sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, check=True)
    ratio, weights, found = done.stdout.split()
    return {"stored": dtype, "loaded": found, "weights": int(weights), "memory over weights": round(float(ratio), 3)}


def main() -> None:
    rows = [measure(dtype) for dtype in ("float32", "bfloat16")]
    print(json.dumps(rows, indent=2))
    if len(sys.argv) > 1:
        about = {"command": "python -m benchmarks.loading", "numpy": np.__version__, "models": rows}
        Path(__file__).with_name("results").joinpath(f"{sys.argv[1]}.json").write_text(
            json.dumps(about, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()

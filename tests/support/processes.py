"""Code in a new process, and attention that such a process checks."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
EXPLAIN = "print(aa.explain(aa.scaled_dot_product_attention, *np.ones((3, 1, 1, 2, 3))))"


def python(code: str, root: Path = ROOT, **environment: str) -> str:
    """Run code in a new process, with attnarray from `root`; return its output."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=root,
        env={**known, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Attention and its gradients in plain NumPy, so that a process can check its results.
CHECKED = """
import numpy as np, attnarray as aa
rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 2, 3, 40, 8))

def check():
    out, pullback = aa.vjp(aa.scaled_dot_product_attention, q, k, v, is_causal=True)
    scores = np.where(np.tri(40, dtype=bool), q @ k.mT / 8**0.5, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(out, p @ v, rtol=0, atol=1e-12)
    dp = v @ v.mT
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / 8**0.5
    for found, expected in zip(pullback(v), (ds @ k, ds.mT @ q, p.mT @ v)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)

check()
"""

"""Interactive sessions: the public names, the functions in help, and contexts in a line."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import optim, tree
from attnarray.cases import CASES
from attnarray.triples import find_triple
from tests.support.layer_calls import LAYERS, Call, arrays

LAST = {case.function: Call(case, {}) for case in CASES}
CALLS = {**LAST, **LAYERS}


def test_dir_lists_public_names_alone() -> None:
    names = [name for name in dir(aa) if not name.startswith("__")]
    assert names == sorted(set(aa.__all__))
    assert set(names) == {
        *aa._MODULES,
        *aa._TYPES,
        *(f + suffix for f in aa.TRIPLES for suffix in ("", "_fwd", "_bwd")),
    }
    for name in names:
        assert getattr(aa, name) is not None


@pytest.mark.parametrize("name", ["layers", "models", "optim", "checkpoints", "tree"])
def test_dir_of_a_module_lists_what_it_offers(name: str) -> None:
    module = getattr(aa, name)
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, each) for each in module.__all__)


def test_help_lists_the_functions() -> None:
    text = pydoc.plain(pydoc.render_doc(aa))
    for name in (*aa.TRIPLES, "gradcheck", "vjp", "asarray", "attention_weights"):
        assert f"\n    {name}(" in text


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_contexts_and_gradients_are_shown_in_a_line(call: Call) -> None:
    _, fwd, bwd = call.triple
    out, ctx = fwd(**call.arguments())
    for shown in (ctx, bwd(getattr(out, "logits", out), ctx)):
        assert hasattr(shown, "_fields")
        text = repr(shown)
        assert "array(" not in text
        assert "\n" not in text
        assert text.startswith(f"{type(shown).__name__}({shown._fields[0]}=")
        if any(True for _ in arrays(shown)):
            assert text.endswith((" bytes)", "kB)"))
        assert len(text) < 1000


def test_caches_and_states_are_shown_in_a_line() -> None:
    model = aa.models.GPT(11, 6, 8, 3, 2)
    assert repr(model.cache(2)) == "GPTCache(blocks=tuple of 6 arrays, starts=None; 2.304 kB)"
    assert (
        repr(model.cache(2).blocks[0])
        == "KVCache(key=float32 (2, 2, 6, 4), value=float32 (2, 2, 6, 4), length=0; 768 bytes)"
    )
    assert repr(optim.adamw_init({"w": np.ones((2, 3), np.float32)})) == (
        "AdamWState(step=0, first_moment=dict of 1 array, second_moment=dict of 1 array; 48 bytes)"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "dict(; 0 bytes)"),
        ([np.zeros((2, 0), bool), None], "list(bool (2, 0), None; 0 bytes)"),
        ({"a": np.float32(1.5), "text": "x" * 100}, f"dict(a=float32 (), text='{'x' * 59}...; 4 bytes)"),
        (np.zeros(3), "float64 (3,)"),
        ((np.zeros(10**3), {"b": (np.zeros(10**6),)}), "tuple(float64 (1000,), dict of 1 array; 8.008 MB)"),
    ],
)
def test_summaries(given: Any, expected: str) -> None:
    assert tree.summary(given) == expected


def test_what_holds_no_arrays_is_shown_in_full() -> None:
    assert repr(aa.available_backends()[0]).startswith("BackendStatus(name='numpy', available=True, version='")
    assert repr(find_triple(aa.relu)).startswith("Triple(f=<function relu")
    assert repr(aa.relu_bwd(np.ones(2), aa.relu_fwd(np.ones(2))[1])) == "ReLUGrads(x=float64 (2,); 16 bytes)"


@pytest.mark.parametrize(
    "statement", ["import attnarray as aa; GPT = aa.models.GPT", "from attnarray.models import GPT"]
)
def test_reprs_are_short_however_it_is_imported(statement: str) -> None:
    code = f"{statement}\nmodel = GPT(11, 6, 8, 1, 2)\nprint(model.cache(1))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.startswith("GPTCache(blocks=tuple of 2 arrays")

"""The programs in docs/examples as modules."""

from __future__ import annotations

import importlib.util
from typing import Any

from tests.support.paths import ROOT

EXAMPLES = ROOT / "docs" / "examples"


def example(name: str) -> Any:
    """The program of that name; its folder must be on the path."""
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def as_layer(forward: Any, backward: Any) -> Any:
    """A program's network as a layer for gradcheck."""

    class Network:
        def __call__(self, params: Any) -> Any:
            return self.fwd(params)[0]

        def fwd(self, params: Any) -> Any:
            return forward(params)

        def bwd(self, dout: Any, ctx: Any) -> Any:
            return type("Grads", (tuple,), {"_fields": ("params",)})((backward(dout, ctx),))

    return Network()

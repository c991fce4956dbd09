"""attnarray: attention on plain arrays, every mechanism with a hand-derived forward and backward.

Names are resolved when they are first used: `import attnarray` loads NumPy and nothing else.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module. A function's `_fwd` and `_bwd` stand in the same module. `__init__.pyi` says the same to type checkers.
_MODULES = {
    "tree": "tree",
    **dict.fromkeys(
        ["namespace_of", "use_backend", "asarray", "to_numpy", "available_backends"], "backend"
    ),
    **dict.fromkeys(["use_kernels", "explain", "warmup"], "dispatch"),
    "gradcheck": "gradient_check",
    "vjp": "triples",
}

# The differentiable functions: each is a triple f, f_fwd, f_bwd.
TRIPLES = {
    "softmax": "ops.softmax",
    "log_softmax": "ops.softmax",
}


def __getattr__(name: str) -> Any:
    stem = name.removesuffix("_fwd").removesuffix("_bwd")
    module = _MODULES.get(name) or TRIPLES.get(stem)
    if module is None:
        raise AttributeError(f"module 'attnarray' has no attribute {name!r}")
    loaded = importlib.import_module(f"attnarray.{module}")
    value = loaded if name == "tree" else getattr(loaded, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    triples = [f + suffix for f in TRIPLES for suffix in ("", "_fwd", "_bwd")]
    return sorted([*globals(), *_MODULES, *triples])

"""A check of all error messages: one paragraph that names an argument and nothing internal."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

# Internal names, and texts of Python and NumPy that are shown if nothing was validated.
INTERNAL = re.compile(
    r"_problem|canonical|[sS]coring|\bForm\b|\bxp\b|\b_\w|NoneType|ndarray|operands|has no attribute|traced|ufunc"
)


def says(error: type[Exception], expected: str, call: Callable[[], Any]) -> None:
    """Check that `call` raises `error` with `expected` in one paragraph that names an argument and nothing internal."""
    with pytest.raises(error, match=re.escape(expected)) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", ")"))
    assert len(message) < 500
    assert re.search(r"`[a-z][\w.\[\]]*`|`[A-Z]\w+(\.\w+)?`|^The arrays (have|come)", message), message
    assert not INTERNAL.search(message), message

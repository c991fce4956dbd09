"""Parameters of tests in the slow tier: `make test` leaves them out, `make test-all` runs all."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import pytest

# As pytest.param, of the slow tier.
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """All but the first `count` for the slow tier; a plain tuple holds the values of several parameters."""
    values = list(values)
    return values[:count] + [slow(*value) if type(value) is tuple else slow(value) for value in values[count:]]

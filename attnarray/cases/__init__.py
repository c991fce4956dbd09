"""One or more `Case` per public triple, with pairwise distinct sizes: for `attnarray check`, `bench` and the tests.

A new mechanism adds its cases here; `tests/naive/<function>.py` holds the twin that its forward is compared with.
"""

from attnarray.cases.case import Case
from attnarray.cases.dot_product import DOT_PRODUCT_CASES
from attnarray.cases.ops import OPS_CASES

CASES: tuple[Case, ...] = (*DOT_PRODUCT_CASES, *OPS_CASES)

__all__ = ["CASES", "Case"]

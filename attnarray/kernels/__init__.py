"""Fast kernels: leaves of the house, reached only through `attnarray.dispatch` by the names in `table.py`."""


class Declined(Exception):
    """Raised by a kernel, before it has written anything, when it does not serve these arguments; says why."""

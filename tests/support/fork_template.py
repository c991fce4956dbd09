"""Code for a process that forks after it started threads, which the child does not have."""

from __future__ import annotations

_TEMPLATE = """
{prepared}
import os, sys, warnings
from attnarray.kernels.numba.runtime import team
check()
assert team.team_sizes()
# Python 3.12 and newer warn that a fork with threads may deadlock, which is what is tested here.
warnings.filterwarnings("ignore", message=".*use of fork.*", category=DeprecationWarning)
child = os.fork()
if child == 0:
    check()
    os._exit(0 if team.team_sizes() else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
check()
sys.exit(status)
"""


def forking(prepared: str) -> str:
    """Code that calls the `check()` of `prepared` in a process, then in its child, and in the parent once more.

    `check` must use several threads in both; the process fails if the child does.
    """
    return _TEMPLATE.format(prepared=prepared)

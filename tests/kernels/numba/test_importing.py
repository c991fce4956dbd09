"""Numba works after exceptions during its import, and in a child that is forked while another thread compiles."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.processes import EXPLAIN, python

pytestmark = pytest.mark.skipif(not hasattr(signal, "alarm") or not hasattr(os, "fork"), reason="needs POSIX")

INTERRUPTED = """
import os, signal, sys, threading
import numpy as np, attnarray as aa
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
came = threading.Event()

class Interrupting:
    left = 1

    def find_spec(self, name, path=None, target=None):
        if name == "numba.core" and self.left:
            self.left = 0
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)
            came.wait()

sys.meta_path.insert(0, Interrupting())
try:
    aa.relu(np.ones(3))
    raise AssertionError("no interrupt came")
except KeyboardInterrupt:
    came.set()
"""


def test_an_interrupt_amid_the_import() -> None:
    assert "numba" in python(INTERRUPTED + EXPLAIN)


FORKED = """
import os, signal, threading, time, warnings
from attnarray.kernels.numba.runtime import team
from numba.core.compiler_lock import global_compiler_lock
warnings.simplefilter("ignore")
compiling, forking = threading.Event(), threading.Event()

def compile():
    with global_compiler_lock:
        compiling.set()
        forking.wait()
        time.sleep(0.2)  # a fork that does not wait would come meanwhile

thread = threading.Thread(target=compile)
thread.start()
compiling.wait()
os.register_at_fork(before=forking.set)
child = os.fork()
if child == 0:
    signal.alarm(600)  # a guard against hanging
    with global_compiler_lock:
        os._exit(7)
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
with global_compiler_lock:
    pass
"""


def test_a_fork_while_another_thread_compiles() -> None:
    python(FORKED)

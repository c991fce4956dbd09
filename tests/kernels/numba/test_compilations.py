"""Who waits for Numba is told once; who listens hears of each kernel instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import python

CALL = "import numpy as np, attnarray as aa; x = np.ones((2, 8)); aa.softmax(x); aa.gelu(x)"
# Whatever takes longer than nothing at all is told.
AT_ONCE = "from attnarray.kernels.numba.runtime import compilations; compilations.SECONDS = 0"
WITH_LOGGING = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s: %(message)s")
"""


@pytest.mark.parametrize("kept", [True, False])
def test_one_line_by_logging(kept: bool, tmp_path: Path) -> None:
    no_folder = "" if kept else "from attnarray.kernels.numba.runtime import jit; jit._cached = lambda kernel: kernel"
    code = "\n".join([WITH_LOGGING, AT_ONCE, no_folder, CALL])
    said = python(code, NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    how = "once: attnarray warmup does it ahead" if kept else "in each process: no folder for a cache can be written"
    assert said == [f"attnarray: Compiling rows.softmax.softmax and the kernels that follow, {how}."]
    if kept:
        assert python(code, NUMBA_CACHE_DIR=str(tmp_path)) == ""


def test_who_listens_hears_of_each(tmp_path: Path) -> None:
    code = f"""
from attnarray.dispatch import compilations
heard = []
with compilations(lambda *what: heard.append(what)):
    {CALL}
print([what for what in heard if what[0] in ("rows.softmax.softmax", "rows.activations.gelu")])
"""
    said = python(WITH_LOGGING + AT_ONCE + code, NUMBA_CACHE_DIR=str(tmp_path))
    assert said == "[('rows.softmax.softmax', True), ('rows.activations.gelu', True)]\n"


def test_kernels_compile_where_no_thread_can_be_started(tmp_path: Path) -> None:
    """Nothing is told then."""
    too_large = "import threading; threading.stack_size(2**46)"
    code = "\n".join([WITH_LOGGING, AT_ONCE, too_large, CALL])
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path), ATTNARRAY_NUM_THREADS="1") == ""

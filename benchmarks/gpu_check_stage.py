"""One stage of `gpu_check` in this process: python -m benchmarks.gpu_check_stage MODULE STAGE FILE."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import FAILED, NO_GPU, NOT_RUN, PASSED, NoGpuError, NotRunError, write


def run(module: str, stage: str) -> dict[str, Any]:
    """The status of a stage, and its results or the reason why there are none."""
    try:
        from attnarray.kernels.cuda import unavailable

        if unavailable():
            raise NoGpuError(unavailable())
        found = getattr(importlib.import_module(f"benchmarks.{module}"), stage)()
    except NoGpuError as reason:
        return {"status": NO_GPU, "reason": str(reason)}
    except NotRunError as reason:
        return {"status": NOT_RUN, "reason": str(reason)}
    except Exception as error:
        return {"status": FAILED, "reason": f"{type(error).__name__}: {error}", "where": traceback.format_exc()[-2000:]}
    wrong = found.get("wrong")
    return {"status": FAILED, "reason": str(wrong)[:500], **found} if wrong else {"status": PASSED, **found}


if __name__ == "__main__":
    write(Path(sys.argv[3]), run(*sys.argv[1:3]))

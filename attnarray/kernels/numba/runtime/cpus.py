"""How many threads to compute with: as many as asked for, or as there are CPUs for this process."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path


def thread_count() -> int:
    """ATTNARRAY_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs that this process may use.

    Raises
    ------
    ValueError
        If ATTNARRAY_NUM_THREADS is set to anything but a whole number above 0.
    """
    text = os.environ.get("ATTNARRAY_NUM_THREADS", "").strip()
    if text:
        count = _number(text)
        if count == 0:
            raise ValueError(
                f"ATTNARRAY_NUM_THREADS is {text!r}, expected a whole number above 0. "
                "Set it to the number of threads that CPU kernels may use, or unset it."
            )
        return count
    text = os.environ.get("OMP_NUM_THREADS", "")
    return (text and _number(text.partition(",")[0].strip())) or cpu_count()  # a list has a number for each level


def _number(text: str) -> int:
    """The whole number above 0, and 0 for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def cpu_count() -> int:
    """The CPUs that affinity allows this thread, or fewer if the cgroup has a smaller quota, rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, granted_cpus())


@functools.cache
def granted_cpus() -> int:
    """The CPUs that the cgroup of this process grants it, rounded up; many without a limit."""
    quota = cpu_quota(Path("/proc/self"))
    return max(math.ceil(quota), 1) if math.isfinite(quota) else 2**31


def cpu_quota(process: Path) -> float:
    """The CPUs that the cgroups of a process (a folder of /proc) grant it; infinity without a limit."""
    try:
        return min(map(_cgroup_quota, _cgroups(process)), default=math.inf)
    except (OSError, ValueError, IndexError):  # no Linux, or a form that is not known
        return math.inf


def _cgroups(process: Path) -> Iterator[Path]:
    """The folders of a process in the hierarchies of cgroup v1 and v2, and those that they lie in."""
    paths: dict[str, str] = {}  # by controller; v2 has one path, without a controller
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    for line in (process / "mountinfo").read_text().splitlines():
        mount, _, about = line.partition(" - ")
        kind, _, options = about.split(" ", 2)
        controller = "cpu" if kind == "cgroup" and "cpu" in options.split(",") else "" if kind == "cgroup2" else None
        if controller in paths:
            # Of the hierarchy, only what is below `root` is mounted; the path of another namespace may lie outside.
            root, point = (field.encode().decode("unicode_escape") for field in mount.split(" ")[3:5])
            inside = os.path.relpath(paths[controller], root)
            folder = top = Path(point)
            if not inside.startswith(".."):
                folder = Path(os.path.normpath(top / inside))
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top))


def _cgroup_quota(folder: Path) -> float:
    """The CPUs that one cgroup grants."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 < float(period) else math.inf
    except (OSError, ValueError):  # the root has no limit, and no such file
        return math.inf

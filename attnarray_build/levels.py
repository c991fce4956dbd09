"""The instructions of each level of CPUs, as LLVM names them."""

from __future__ import annotations

import os
import platform
import shlex

from llvmlite import binding

from attnarray.kernels.numba.runtime.library import LEVELS

V2 = "+cx16,+sahf,+popcnt,+sse3,+sse4.1,+sse4.2,+ssse3"
V3 = V2 + ",+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+xsave"
# LLVM prefers vectors of 256 bits on this level, for the CPUs that slow down with wider ones.
V4 = V3 + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,-prefer-256-bit"
FEATURES = {"x86-64-v2": V2, "x86-64-v3": V3, "x86-64-v4": V4, "arm64": "+neon,+fp-armv8"}


def known() -> tuple[str, ...]:
    """The levels of this kind of machine, the best one first."""
    return LEVELS.get(platform.machine().lower(), ())


def native() -> str:
    """The best level that this machine has."""
    there = {f"+{name}" for name, has in binding.get_host_cpu_features().items() if has}
    wanted = {level: {name for name in FEATURES[level].split(",") if name.startswith("+")} for level in known()}
    return next(level for level in known() if wanted[level] <= there or level == known()[-1])


def environment(level: str) -> dict[str, str]:
    """The environment of a process in which Numba compiles for a level."""
    cpu = level if level.startswith("x86") else "generic"
    return {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": FEATURES[level]}


def c_compiler() -> list[str]:
    """The compiler that CC names, with its options, as words of a shell."""
    return shlex.split(os.environ.get("CC", ""), posix=os.name == "posix") or ["cc"]

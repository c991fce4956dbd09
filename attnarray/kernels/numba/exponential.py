"""exp2 for inner loops: branch-free, so that LLVM makes vector code of it (Numba ships no vector math library).

2^x = 2^n 2^r with n = round(x) and |r| <= 1/2; 2^r by a polynomial, 2^n by writing the exponent bits.
Below the smallest normal number the result is exactly 0, as masked entries need; NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from attnarray.kernels.numba.jit import OPTIONS

# ln(2)^k / k!, the Taylor series of 2^r. At |r| = 1/2 the first term left out is 5e-9 (float32), 2e-17 (float64) of it.
TAYLOR = tuple(math.log(2) ** k / math.factorial(k) for k in range(14))


def exp2(x: float) -> float:
    """2^x in the type of x, for compiled code; this body serves where compilation is off."""
    return 2.0**x if x >= -1022.0 else 0.0


@intrinsic
def _float32_of_bits(_context: Any, _bits: Any) -> Any:
    return types.float32(types.int32), lambda _c, builder, _s, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic
def _float64_of_bits(_context: Any, _bits: Any) -> Any:
    return types.float64(types.int64), lambda _c, builder, _s, args: builder.bitcast(args[0], ir.DoubleType())


@overload(exp2, jit_options=OPTIONS)
def _exp2(x: Any) -> Callable[[Any], Any] | None:
    return {types.float32: _exp2_float32, types.float64: _exp2_float64}.get(x)


_C32 = tuple(np.float32(c) for c in TAYLOR[:8])
_HALF, _ZERO, _LOWEST = np.float32(0.5), np.float32(0), np.float32(-126)
_BIAS, _SHIFT = np.int32(127), np.int32(23)


def _exp2_float32(x: Any) -> Any:
    clipped = _LOWEST if x < _LOWEST else x
    n = np.floor(clipped + _HALF)
    r = clipped - n
    c = _C32
    power = ((((((c[7] * r + c[6]) * r + c[5]) * r + c[4]) * r + c[3]) * r + c[2]) * r + c[1]) * r + c[0]
    result = power * _float32_of_bits((np.int32(n) + _BIAS) << _SHIFT)
    return _ZERO if x < _LOWEST else result


def _exp2_float64(x: Any) -> Any:
    clipped = -1022.0 if x < -1022.0 else x
    n = np.floor(clipped + 0.5)
    r = clipped - n
    c = TAYLOR
    low = ((((c[13] * r + c[12]) * r + c[11]) * r + c[10]) * r + c[9]) * r + c[8]
    power = (((((((low * r + c[7]) * r + c[6]) * r + c[5]) * r + c[4]) * r + c[3]) * r + c[2]) * r + c[1]) * r + c[0]
    result = power * _float64_of_bits((np.int64(n) + 1023) << 52)
    return 0.0 if x < -1022.0 else result

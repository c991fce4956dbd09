"""Sampling of tokens from logits: temperature, top-k, top-p (nucleus)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnarray import checks
from attnarray.backend import Array, device_of, dtype_name, index_dtype, namespace_of, to_numpy
from attnarray.dispatch import ignoring_fp_errors
from attnarray.magnitude import check_number
from attnarray.ops.softmax import softmax
from attnarray.random import Philox


def keep_top_k(logits: Array, k: int) -> Any:
    """Keep the k largest logits of each row (..., V), and those equal to the k-th; the others become -inf.

    Raises
    ------
    ValueError
        If k is not an integer >= 1, or a row has no distribution: a NaN, or -inf for every token.

    References
    ----------
    Fan, Lewis and Dauphin, "Hierarchical neural story generation", 2018, arXiv:1805.04833.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.models.keep_top_k(np.array([1.0, 3.0, 2.0]), 2).tolist()
    [-inf, 3.0, 2.0]
    """
    _check(logits)
    k = checks.whole("top_k", k, 1, 2**31, "the number of tokens to keep")
    xp, V = namespace_of(logits), logits.shape[-1]
    if k >= V:
        return logits
    finite_or_certain(logits)
    ordered = xp.sort(logits, axis=-1)
    return xp.where(logits >= ordered[..., V - k, None], logits, -math.inf)


def keep_top_p(logits: Array, p: float) -> Any:
    """Keep the smallest set of the most likely tokens whose probabilities sum to at least p; the others become -inf.

    Tokens as likely as the last of them are kept too. Logits are (..., V).

    Raises
    ------
    ValueError
        If p is not positive and at most 1, or a row has no probabilities: a NaN, or -inf for every token.

    References
    ----------
    Holtzman et al., "The curious case of neural text degeneration", 2019, arXiv:1904.09751.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.models.keep_top_p(np.log(np.array([0.5, 0.2, 0.3])), 0.7).round(2).tolist()
    [-0.69, -inf, -1.2]
    """
    _check(logits)
    if not 0 < checks.real(p) <= 1:
        raise ValueError(f"`top_p` is {checks.shown(p)}, expected a probability above 0 and up to 1.")
    if p == 1:
        return logits
    xp, certain = namespace_of(logits), finite_or_certain(logits)
    ordered = xp.flip(xp.sort(certain, axis=-1), axis=-1)
    likely = softmax(ordered)
    before = _cumulative_sum(likely) - likely  # the sum of the more likely ones
    least = xp.min(xp.where(before < p, ordered, ordered[..., :1]), axis=-1, keepdims=True)
    return xp.where(certain >= least, logits, -math.inf)


@ignoring_fp_errors
def with_temperature(logits: Array, temperature: float) -> Any:
    """Divide logits by a temperature: below 1 the distribution becomes sharper, above 1 flatter.

    Returns
    -------
    array
        In float64 where the library has it, else in float32: 16-bit logits would overflow at low temperatures. From a
        row that would overflow even so, its maximum is subtracted first, which does not change the distribution.

    Raises
    ------
    ValueError
        If the temperature is not positive.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.models.with_temperature(np.array([1.0, 3.0]), 0.5).tolist()
    [2.0, 6.0]
    """
    _check(logits)
    temperature = checks.positive("temperature", temperature)
    xp, wide = namespace_of(logits), _wide(logits)
    if dtype_name(wide.dtype) == "float32":
        check_number("temperature", temperature, "float32")
    if temperature < 1 and math.prod(logits.shape):
        limit = float(xp.finfo(wide.dtype).max) / 2 * temperature  # twice as much would overflow
        above = xp.any((xp.abs(wide) > limit) & xp.isfinite(wide), axis=-1, keepdims=True)
        if bool(xp.any(above)):
            largest = xp.max(wide, axis=-1, keepdims=True)
            less = xp.where(wide == largest, 0.0, xp.where(wide == -math.inf, wide, wide - largest))
            less = xp.where(less < -limit, -math.inf, less)
            wide = xp.where(above, less, wide)
    return wide if temperature == 1 else wide / temperature


def draw(logits: Array, rng: Philox | int) -> Any:
    """Sample a token (B,) from each row of logits (B, V); the same seed gives the same tokens on every backend.

    Row b takes the first token whose cumulative probability exceeds the b-th number of the generator. Tokens whose
    logits are +inf share all probability.

    Raises
    ------
    ValueError
        If a row has no distribution: it holds NaN, or -inf for every token.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.models.draw(np.array([[0.0, -np.inf, 0.0]] * 5), aa.Philox(1)).tolist()
    [2, 2, 0, 2, 0]
    """
    _check(logits, 2, "(B, V)")
    rng = rng if isinstance(rng, Philox) else Philox(rng)
    xp, likely = namespace_of(logits), softmax(finite_or_certain(logits))
    sums = xp.where(likely > 0, _cumulative_sum(likely), 0.0)  # (B, V)
    below_one = 1.0 - float(xp.finfo(likely.dtype).eps) / 2  # to which a short dtype rounds up
    host = np.minimum(to_numpy(rng.uniform((logits.shape[0], 1), dtype="float64")), below_one)
    level = xp.asarray(host, dtype=likely.dtype, device=device_of(logits)) * xp.max(sums, axis=1, keepdims=True)
    return xp.argmax(xp.astype(sums > level, index_dtype(xp, logits)), axis=1)


def finite_or_certain(logits: Array, going: Array | None = None) -> Array:
    """Return logits (..., V) in the widest dtype; in rows with +inf, these become 0 and all others -inf.

    Raises
    ------
    ValueError
        If a row has no distribution: it holds NaN, or -inf for every token. Where `going` (...) is False, nothing is
        asked of a row, and its logits are 0.
    """
    xp, logits = namespace_of(logits), _wide(logits)
    logits = logits if going is None else xp.where(going[..., None], logits, 0.0)
    if not math.prod(logits.shape):
        return logits
    largest = xp.max(logits, axis=-1, keepdims=True)  # NaN where there is any
    if bool(xp.all(xp.isfinite(largest))):
        return logits
    host = to_numpy(largest)[..., 0]
    for wrong, what in ((np.isnan(host), "NaN"), (host == -math.inf, "-inf for every token")):
        if np.any(wrong):
            row = ", ".join(str(axis[0]) for axis in np.atleast_1d(wrong).nonzero())
            raise ValueError(
                f"`logits` hold {what} in row {row}, expected numbers, of which at least one is above -inf: no token "
                "can be selected. Check the parameters for NaN, and whether all tokens are masked."
            )
    return xp.where(largest == math.inf, xp.where(logits == math.inf, 0.0, -math.inf), logits)


def _check(logits: Array, axes: int | None = None, expected: str = "(..., V)") -> None:
    checks.require_array("logits", logits)
    checks.floating(logits=logits)
    if (axes or logits.ndim or 1) != logits.ndim or not logits.shape[-1]:
        raise ValueError(f"`logits` has shape {tuple(logits.shape)}, expected {expected} with V > 0.")


def _wide(logits: Array) -> Array:
    """The logits in float64, or in float32 where the library does without it, as JAX may."""
    xp = namespace_of(logits)
    return xp.astype(logits, xp.float64 if index_dtype(xp, logits) == xp.int64 else xp.float32, copy=False)


def _cumulative_sum(x: Array) -> Array:
    xp = namespace_of(x)
    sums = xp.cumulative_sum if hasattr(xp, "cumulative_sum") else xp.cumsum  # NumPy 2.0 has the older name alone
    return sums(x, axis=-1)

"""Drawing a token from logits: temperature, the most likely k, the most likely share p."""

from __future__ import annotations

import math
from typing import Any

from attnarray import checks
from attnarray.backend import Array, device_of, index_dtype, namespace_of, to_numpy
from attnarray.ops.softmax import softmax
from attnarray.random import Philox


def keep_top_k(logits: Array, k: int) -> Array:
    """The k largest logits of each row (..., V), and -inf for all others; logits that equal the k-th stay too.

    Raises
    ------
    ValueError
        If k is no integer >= 1.

    References
    ----------
    Fan, Lewis and Dauphin, "Hierarchical neural story generation", 2018, arXiv:1805.04833.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.models.keep_top_k(np.array([1.0, 3.0, 2.0]), 2).tolist()
    [-inf, 3.0, 2.0]
    """
    checks.floating(logits=logits)
    checks.whole("top_k", k, 1, 2**31, "how many of the most likely tokens stay")
    xp, V = namespace_of(logits), logits.shape[-1]
    if k >= V:
        return logits
    ordered = xp.sort(logits, axis=-1)
    return xp.where(logits >= ordered[..., V - k, None], logits, -math.inf)


def keep_top_p(logits: Array, p: float) -> Array:
    """The fewest of the most likely tokens whose probabilities sum to p or more; -inf for the others (..., V).

    Tokens as likely as the last of them stay too.

    Raises
    ------
    ValueError
        If p is not above 0 and at most 1.

    References
    ----------
    Holtzman et al., "The curious case of neural text degeneration", 2019, arXiv:1904.09751.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.models.keep_top_p(np.log(np.array([0.5, 0.2, 0.3])), 0.7).round(2).tolist()
    [-0.69, -inf, -1.2]
    """
    checks.floating(logits=logits)
    if not 0 < checks.real(p) <= 1:
        raise ValueError(f"`top_p` is {checks.shown(p)}, expected a probability above 0 and up to 1.")
    if p == 1:
        return logits
    xp = namespace_of(logits)
    ordered = xp.flip(xp.sort(logits, axis=-1), axis=-1)
    likely = softmax(xp.astype(ordered, _widest(logits)))
    before = _cumulative_sum(likely) - likely  # what the more likely ones sum to
    least = xp.min(xp.where(before < p, ordered, math.inf), axis=-1, keepdims=True)
    return xp.where(logits >= least, logits, -math.inf)


def with_temperature(logits: Array, temperature: float) -> Array:
    """Logits divided by a temperature: below 1 likely tokens become likelier, above 1 all become more alike.

    Raises
    ------
    ValueError
        If the temperature is not above 0.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.models.with_temperature(np.array([1.0, 3.0]), 0.5).tolist()
    [2.0, 6.0]
    """
    checks.floating(logits=logits)
    checks.positive("temperature", temperature)
    return logits if temperature == 1 else logits / temperature


def draw(logits: Array, rng: Philox | int) -> Array:
    """A token (B,) for each row (B, V), by its probability; the same seed gives the same tokens on every backend.

    Row b takes the b-th number of the generator: the first token whose cumulated probability exceeds it.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.models.draw(np.array([[0.0, -np.inf, 0.0]] * 5), aa.Philox(1)).tolist()
    [2, 2, 0, 2, 0]
    """
    checks.floating(logits=logits)
    if logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f"`logits` has shape {tuple(logits.shape)}, expected (B, V) with V > 0.")
    rng = rng if isinstance(rng, Philox) else Philox(rng)
    xp, wide = namespace_of(logits), _widest(logits)
    sums = _cumulative_sum(softmax(xp.astype(logits, wide)))  # (B, V)
    host = to_numpy(rng.uniform((logits.shape[0], 1), dtype="float64"))
    level = xp.asarray(host, dtype=wide, device=device_of(logits)) * sums[:, -1:]  # the sums may end beside 1
    return xp.sum(xp.astype(sums <= level, index_dtype(xp, logits)), axis=1)


def _widest(logits: Array) -> Any:
    xp = namespace_of(logits)
    return xp.float64 if index_dtype(xp, logits) == xp.int64 else xp.float32  # as JAX has it or not


def _cumulative_sum(x: Array) -> Array:
    xp = namespace_of(x)
    sums = xp.cumulative_sum if hasattr(xp, "cumulative_sum") else xp.cumsum  # NumPy 2.0 has the older name alone
    return sums(x, axis=-1)

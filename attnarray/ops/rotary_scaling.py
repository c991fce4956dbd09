"""Rotary positions for texts longer than those of the training: which frequencies, and an attention factor.

Each scaling gives the frequencies of the R / 2 pairs of features from their unscaled ones, and an attention factor that
queries and keys are both multiplied by, so that it acts twice on scores.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from attnarray import checks

Frequencies = tuple[float, ...]


class RotaryScaling(Protocol):
    """The frequencies and the attention factor of rotary positions of `dims` features."""

    def check(self, dims: int, base: float) -> None:
        """Raise a ValueError if an option is out of its range."""

    def frequencies(self, dims: int, base: float, seq_len: int) -> Frequencies:
        """Those of texts of `seq_len` positions."""

    @property
    def magnitude(self) -> float:
        """The attention factor."""


def plain_frequencies(dims: int, base: float) -> Frequencies:
    """omega_n = b^(-2 n / R)."""
    return tuple(math.exp(-math.log(base) * (n / dims)) for n in range(0, dims, 2))


class DynamicNTK(NamedTuple):
    r"""A base that grows with the length of the text, once that exceeds the length L of the training.

    .. math:: b' = b \left(\frac{s\, T}{L} - (s - 1)\right)^{R / (R - 2)}

    T is `seq_len` of `rotary`: the last position plus 1, if it is not given. A cache keeps keys as they were rotated,
    so that steps past L differ from one call over all positions.

    Parameters
    ----------
    factor : float
        s.
    max_seq_len : int
        L.

    References
    ----------
    Peng et al., "YaRN", 2023, arXiv:2309.00071, appendix B.1.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x, scaling = np.ones((9, 8)), aa.DynamicNTK(factor=2.0, max_seq_len=4)
    >>> bool((aa.rotary(x, scaling=scaling)[1] == aa.rotary(x)[1]).all())
    False
    >>> bool((aa.rotary(x[:4], scaling=scaling) == aa.rotary(x[:4])).all())
    True
    """

    factor: float
    max_seq_len: int

    def check(self, dims: int, base: float) -> None:
        checks.positive("scaling.factor", self.factor)
        _length("scaling.max_seq_len", self.max_seq_len)

    def frequencies(self, dims: int, base: float, seq_len: int) -> Frequencies:
        growth = self.factor * max(seq_len, self.max_seq_len) / self.max_seq_len - (self.factor - 1.0)
        return plain_frequencies(dims, base if dims == 2 else base * growth ** (dims / (dims - 2)))

    @property
    def magnitude(self) -> float:
        return 1.0


class YaRN(NamedTuple):
    r"""Low frequencies divided by a factor, high ones as they are, those between both by a ramp; and larger scores.

    .. math::
        \omega'_n = r_n \frac{\omega_n}{s} + (1 - r_n)\, \omega_n, \qquad
        r_n = \mathrm{clip}\Bigl(\frac{n - n_\beta}{n_\alpha - n_\beta}, 0, 1\Bigr), \qquad
        n_\rho = \frac{R}{2} \frac{\log(L / 2 \pi \rho)}{\log b}

    Parameters
    ----------
    factor : float
        s: how many times longer texts are than those of the training.
    original_max_seq_len : int
        L: the length of the training.
    beta_fast, beta_slow : float
        beta and alpha: pairs with more rotations than beta within L keep their frequencies, those with fewer than
        alpha are divided by s.
    attention_factor : float, optional
        What queries and keys are multiplied by; m(mscale) / m(mscale_all_dim) if these are given, else m(1), with
        m(c) = 0.1 c log s + 1, and 1 if s is at most 1.
    mscale, mscale_all_dim : float, optional
        See `attention_factor`.
    truncate : bool
        Whether the limits of the ramp are rounded outwards to whole pairs.

    References
    ----------
    Peng et al., "YaRN: efficient context window extension of large language models", 2023, arXiv:2309.00071.

    Examples
    --------
    >>> import attnarray as aa
    >>> round(aa.YaRN(4.0, 64).magnitude, 4)
    1.1386
    """

    factor: float
    original_max_seq_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def check(self, dims: int, base: float) -> None:
        for name in ("factor", "beta_fast", "beta_slow"):
            checks.positive(f"scaling.{name}", getattr(self, name))
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                checks.positive(f"scaling.{name}", getattr(self, name))
        _length("scaling.original_max_seq_len", self.original_max_seq_len)
        checks.flag("scaling.truncate", self.truncate)
        if base <= 1.0:
            raise ValueError(f"`base` is {base:g}, expected more than 1 with the scaling YaRN.")
        if self.beta_fast < self.beta_slow:
            raise ValueError(f"`scaling.beta_fast` ({self.beta_fast:g}) is below `beta_slow` ({self.beta_slow:g}).")

    def frequencies(self, dims: int, base: float, seq_len: int) -> Frequencies:
        first, last = (
            dims * math.log(self.original_max_seq_len / (rotations * 2 * math.pi)) / (2 * math.log(base))
            for rotations in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, dims - 1)
        width = last - first if last != first else 0.001
        ramp = [min(max((n - first) / width, 0.0), 1.0) for n in range(dims // 2)]
        return tuple(
            r * w / self.factor + (1.0 - r) * w for r, w in zip(ramp, plain_frequencies(dims, base), strict=True)
        )

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor

        def m(scale: float) -> float:
            return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0

        return m(self.mscale) / m(self.mscale_all_dim) if self.mscale and self.mscale_all_dim else m(1.0)


class Llama3RoPE(NamedTuple):
    r"""Three bands of frequencies: high ones as they are, low ones divided by a factor, those between both smoothed.

    .. math::
        \omega'_n = (1 - u_n) \frac{\omega_n}{s} + u_n \omega_n, \qquad
        u_n = \mathrm{clip}\Bigl(\frac{L \omega_n / 2 \pi - l}{h - l}, 0, 1\Bigr)

    Parameters
    ----------
    factor : float
        s.
    original_max_seq_len : int
        L.
    low_freq_factor, high_freq_factor : float
        l and h: pairs with fewer rotations than l within L are divided by s, those with more than h are not.

    References
    ----------
    Grattafiori et al., "The Llama 3 herd of models", 2024, arXiv:2407.21783; as of the weights of LLaMA 3.1.

    Examples
    --------
    >>> import attnarray as aa
    >>> found = aa.Llama3RoPE(8.0, 32).frequencies(dims=8, base=100.0, seq_len=64)
    >>> [round(w, 4) for w in found]
    [1.0, 0.0958, 0.0125, 0.004]
    """

    factor: float
    original_max_seq_len: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def check(self, dims: int, base: float) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            checks.positive(f"scaling.{name}", getattr(self, name))
        _length("scaling.original_max_seq_len", self.original_max_seq_len)
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"`scaling.high_freq_factor` is {self.high_freq_factor:g}, expected more than `low_freq_factor`, "
                f"{self.low_freq_factor:g}."
            )

    def frequencies(self, dims: int, base: float, seq_len: int) -> Frequencies:
        low, high = self.low_freq_factor, self.high_freq_factor
        found = []
        for w in plain_frequencies(dims, base):
            rotations = self.original_max_seq_len * w / (2 * math.pi)
            u = min(max((rotations - low) / (high - low), 0.0), 1.0)
            found.append((1.0 - u) * w / self.factor + u * w)
        return tuple(found)

    @property
    def magnitude(self) -> float:
        return 1.0


class LongRoPE(NamedTuple):
    r"""Each frequency divided by its own factor: one of a list for texts up to length L, else one of another.

    .. math:: \omega'_n = \omega_n / f_n, \qquad m = \sqrt{1 + \log s / \log L}

    Parameters
    ----------
    short_factor, long_factor : tuple of R / 2 floats
        f: for a `seq_len` of `rotary` up to L, and for a larger one. A cache keeps keys as they were rotated.
    original_max_seq_len : int
        L.
    factor : float
        s: how many times longer texts may be.
    attention_factor : float, optional
        What queries and keys are multiplied by: m by default, 1 if s is at most 1.

    References
    ----------
    Ding et al., "LongRoPE: extending LLM context window beyond 2 million tokens", 2024, arXiv:2402.13753.

    Examples
    --------
    >>> import attnarray as aa
    >>> scaling = aa.LongRoPE((1.0, 1.0), (1.0, 4.0), original_max_seq_len=16, factor=4.0)
    >>> scaling.frequencies(4, 100.0, seq_len=16)[1] / scaling.frequencies(4, 100.0, seq_len=17)[1]
    4.0
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_seq_len: int
    factor: float = 1.0
    attention_factor: float | None = None

    def check(self, dims: int, base: float) -> None:
        for name in ("short_factor", "long_factor"):
            given = getattr(self, name)
            if not isinstance(given, tuple) or len(given) != dims // 2:
                raise ValueError(
                    f"`scaling.{name}` is {checks.shown(given)}, expected a tuple of {dims // 2} numbers: one for each "
                    f"pair of the {dims} features that are rotated."
                )
            for number in given:
                checks.positive(f"scaling.{name}", number)
        checks.positive("scaling.factor", self.factor)
        if self.attention_factor is not None:
            checks.positive("scaling.attention_factor", self.attention_factor)
        checks.whole("scaling.original_max_seq_len", self.original_max_seq_len, 2, 2**31, "the length of the training")

    def frequencies(self, dims: int, base: float, seq_len: int) -> Frequencies:
        factors = self.long_factor if seq_len > self.original_max_seq_len else self.short_factor
        return tuple(w / f for w, f in zip(plain_frequencies(dims, base), factors, strict=True))

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 if self.factor <= 1 else math.sqrt(1.0 + math.log(self.factor) / math.log(self.original_max_seq_len))


SCALINGS = (DynamicNTK, YaRN, Llama3RoPE, LongRoPE)
BY_LENGTH = (DynamicNTK, LongRoPE)


def _length(name: str, value: int) -> None:
    checks.whole(name, value, 1, 2**31, "the length of the texts of the training")

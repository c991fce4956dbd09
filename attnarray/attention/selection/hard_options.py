"""How hard attention chooses its keys, checked: estimator, temperature, k and noise -> `Rule`."""

from __future__ import annotations

from typing import Any, TypedDict

from attnarray import checks
from attnarray.attention.form import Form
from attnarray.attention.selection.hard_core import ESTIMATORS, RELAXED, SAMPLING, Rule
from attnarray.backend import Array
from attnarray.random import Philox, seed_of


class HardOptions(TypedDict, total=False):
    """The options that say what the scores are; `scaled_dot_product_attention` documents each."""

    scale: float | None
    bias: Array | None
    window: tuple[int | None, int | None] | None
    q_offset: Any
    kv_lengths: Any
    softcap: float | None
    enable_gqa: bool | None
    layout: str


def rule_of(
    estimator: str,
    temperature: float,
    k: int,
    rng: Philox | int | None,
    noise: Array | None,
    form: Form,
    shape: tuple[int, int, int],
) -> Rule:
    """The rule for scores of canonical `shape` (H, T, S)."""
    checks.one_of("estimator", estimator, ESTIMATORS)
    temperature, k = check_numbers(estimator, temperature, k)
    keys = shape[2]
    if k > keys > 0:
        raise ValueError(
            f"`k` is {k}, but there are {keys} keys; expected an integer from 1 to {keys}. Choose a smaller `k`."
        )
    sampling = estimator in SAMPLING
    for name, given in (("rng", rng), ("noise", noise)):
        if given is not None and not sampling:
            raise ValueError(
                f"`{name}` is given, but the estimator '{estimator}' does not sample. Leave it out, or choose another "
                "`estimator`."
            )
    if sampling and (rng is None) == (noise is None):
        given = "neither `rng` nor `noise` is" if rng is None else "both `rng` and `noise` are"
        raise ValueError(
            f"The estimator '{estimator}' samples, but {given} given. Pass rng=attnarray.Philox(seed), a new one for "
            "each step, or the Gumbel noise itself; at inference, estimator='argmax' needs none."
        )
    if noise is not None:
        axes = "(*batch, H, T, S)" if form.has_heads else "(*batch, T, S)"
        checks.broadcasts("noise", noise, form.scores_shape(*shape), axes)
        noise = form.canonical_scores(noise)
    return Rule(estimator, temperature, k, None if rng is None else seed_of(rng), noise)


def check_numbers(estimator: str, temperature: float, k: int) -> tuple[float, int]:
    """Check the temperature and k of an estimator that is known."""
    temperature = checks.positive("temperature", temperature)
    if temperature != 1 and estimator not in RELAXED:
        raise ValueError(
            f"`temperature` is {temperature:g}, but the estimator '{estimator}' has none. Leave it out, or choose "
            "'gumbel' or 'straight_through'."
        )
    k = checks.whole("k", k, 1, 2**31, "the number of keys that are chosen")
    if k > 1 and estimator != "top_k":
        raise ValueError(
            f"`k` is {k}, but the estimator '{estimator}' chooses one key. Leave it out, or choose 'top_k'."
        )
    return temperature, k

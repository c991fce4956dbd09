"""How hard attention chooses its keys, checked: estimator, temperature, k and noise -> a normalizer."""

from __future__ import annotations

from typing import Any, TypedDict

from attnarray import checks
from attnarray.attention.layout import Layout
from attnarray.attention.selection.estimators import ESTIMATORS, Estimator
from attnarray.backend import Array
from attnarray.random import Philox, as_seed

SAMPLING = ("reinforce", "gumbel", "straight_through")
RELAXED = ("gumbel", "straight_through")


class HardOptions(TypedDict, total=False):
    """The options that say what the scores are; `scaled_dot_product_attention` documents each."""

    scale: float | None
    bias: Array | None
    window: tuple[int | None, int | None] | None
    q_offset: Any
    kv_lengths: Any
    softcap: float | None
    enable_gqa: bool | None
    layout: checks.LayoutName


def estimator_normalizer(
    estimator: Estimator,
    temperature: float,
    k: int,
    rng: Philox | int | None,
    noise: Array | None,
    layout: Layout,
    shape: tuple[int, int, int],
) -> Any:
    """The normalizer of an estimator for scores of canonical `shape` (H, T, S)."""
    checks.choice("estimator", estimator, tuple(ESTIMATORS))
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
        both = "neither `rng` nor `noise` is" if rng is None else "both `rng` and `noise` are"
        raise ValueError(
            f"The estimator '{estimator}' samples, but {both} given. Pass rng=attnarray.Philox(seed), a new one for "
            "each step, or the Gumbel noise itself; at inference, estimator='argmax' needs none."
        )
    if noise is not None:
        axes = "(*batch, H, T, S)" if layout.has_heads else "(*batch, T, S)"
        checks.broadcasts("noise", noise, layout.scores_shape(*shape), axes)
        noise = layout.canonical_scores(noise)
    options: dict[str, Any] = {"seed": None if rng is None else as_seed(rng), "noise": noise} if sampling else {}
    if estimator in RELAXED:
        options["temperature"] = temperature
    if estimator == "top_k":
        options["k"] = k
    return ESTIMATORS[estimator](**options)


def check_numbers(estimator: Estimator, temperature: float, k: int) -> tuple[float, int]:
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

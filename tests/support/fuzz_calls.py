"""Random calls of every public triple for `python -m tests.fuzz`; here those of the primitive operations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.support import fuzz_heads, fuzz_images, fuzz_sequences
from tests.support.fuzz_draw import Arrays, Call, Draw, rows


def segment_softmax(d: Draw) -> Call:
    batch, entries, heads, count = d.batch(), d.length(12, 200), d.size(3, 8), d.size(6, 30, least=1)
    given = {"x": 2 * d.normal(*batch, entries, heads), "segments": d.rng.integers(0, count, entries), "count": count}
    if d.chance(0.3):
        given["segments"].sort()
    if not d.chance(0.4):
        return Call("segment_softmax", given, {}, {})
    given["mask"] = d.bits(*d.broadcastable(given["x"].shape))
    hidden = np.broadcast_to(~given["mask"], given["x"].shape)
    return Call("segment_softmax", given, {("x",): hidden}, {(): hidden})


def _masked_rows(function: str) -> Callable[[Draw], Call]:
    def draw(d: Draw) -> Call:
        shape = (*d.batch(), d.size(5), d.length(9, 300))
        given: Arrays = {"x": 2 * d.normal(*shape)}
        if d.chance(0.3):
            given["axis"] = d.integer(-len(shape), len(shape) - 1)
        if function == "entmax":
            given["alpha"] = d.choice(1.5, 1.1, 2.0, 2.5)
        if not d.chance(0.5):
            return Call(function, given, {}, {})
        given["mask"] = d.bits(*d.broadcastable(shape))
        hidden = np.broadcast_to(~given["mask"], shape)
        return Call(function, given, {("x",): hidden}, {(): hidden})

    return draw


def _elementwise(function: str) -> Callable[[Draw], Call]:
    def draw(d: Draw) -> Call:
        given: Arrays = {"x": d.choice(1.0, 3.0, 20.0) * d.normal(*d.batch(), d.size(9, 500))}
        if function == "gelu":
            given["approximate"] = d.choice("none", "tanh")
        return Call(function, given, {}, {})

    return draw


def linear(d: Draw) -> Call:
    given = {"x": d.normal(*d.batch(), d.size()), "weight": None}
    given["weight"] = d.normal(d.size(), given["x"].shape[-1])
    if d.chance(0.5):
        given["bias"] = d.normal(len(given["weight"]))
    return Call("linear", given, {}, {})


def _norm(function: str) -> Callable[[Draw], Call]:
    def draw(d: Draw) -> Call:
        width = d.size(9, 300, least=1)
        given: Arrays = {"x": d.choice(1.0, 10.0) * d.normal(*d.batch(), d.length(6, 20), width)}
        if d.chance(0.6):
            given["weight"] = d.normal(width)
        if d.chance(0.5) and function == "layer_norm":
            given["bias"] = d.normal(width)
        given["eps"] = d.choice(1e-3, 0.5)
        return Call(function, given, {}, {})

    return draw


def embedding(d: Draw) -> Call:
    rows_there, width = d.size(30, 200, least=1), d.size(9, 40)
    indices = d.rng.integers(0, rows_there, (*d.batch(), d.length(7, 60)))
    unused = ~np.isin(np.arange(rows_there), indices)
    given = {"indices": indices, "weight": d.normal(rows_there, width)}
    return Call("embedding", given, {("weight",): rows(unused, width)}, {})


def rotary(d: Draw) -> Call:
    axes, dim = d.choice(2, 3, 4, 4, 5), d.size(12, 64, least=2)
    shape = (*(d.size(3, 4) for _ in range(axes - 2)), d.size(6, 40), dim)
    given: Arrays = {"x": d.normal(*shape), "interleaved": d.chance(0.5)}
    given["dims"] = 2 * d.integer(1, dim // 2) if d.chance(0.4) or dim % 2 else None
    if d.chance(0.3):
        given["positions"] = d.rng.integers(-9, 99, d.broadcastable(shape[:-1]) or (1,))
        if given["positions"].shape[-1] not in (1, shape[-2]) or given["positions"].ndim == 0:
            given.pop("positions")
    elif d.chance(0.3):
        given["offset"] = d.integer(0, 99)
    if d.chance(0.3):
        given |= {"scaling": d.choice("linear", "ntk"), "factor": d.choice(1.0, 4.0)}
        if given["scaling"] == "ntk" and (given["dims"] or dim) == 2:
            given["scaling"] = "linear"
    return Call("rotary", given, {}, {})


def dropout(d: Draw) -> Call:
    shape = (*d.batch(), d.size(9, 300))
    given: Arrays = {"x": d.normal(*shape), "p": d.choice(0.0, 0.2, 0.7)}
    given |= {"rng": d.integer(0, 10**9)} if d.chance(0.6) else {"mask": d.bits(*d.broadcastable(shape))}
    return Call("dropout", given, {}, {})


def cross_entropy(d: Draw) -> Call:
    batch, classes = d.batch(), d.size(9, 300, least=1)
    targets = d.rng.integers(0, classes, batch)
    reduction = d.choice("mean", "sum", "none")
    given: Arrays = {"logits": 3 * d.normal(*batch, classes), "reduction": reduction}
    given["ignore_index"] = d.choice(-100, -1, 0, 200)
    if d.chance(0.5):
        targets = np.where(d.rng.random(batch) < 0.4, given["ignore_index"], targets)
    given["targets"] = np.asarray(targets)
    if d.chance(0.4):
        given["label_smoothing"] = d.choice(0.1, 0.5)
    if d.chance(0.3):
        given["weight"] = d.rng.random(classes)
    ignored = given["targets"] == given["ignore_index"]
    hidden_out = {(): ignored} if reduction == "none" else {}
    return Call("cross_entropy", given, {("logits",): rows(ignored, classes)}, hidden_out)


def conv1d(d: Draw) -> Call:
    channels, out, width, dilation = d.size(5), d.size(5), d.integer(1, 4), d.integer(1, 3)
    steps = d.size(9, 60)
    padding = d.choice("same", "causal", "valid", d.integer(0, 5))
    if padding == "same":
        width += 1 - width % 2
    if padding == "valid" or isinstance(padding, int):
        steps += (width - 1) * dilation + 1
    groups = d.choice(1, 1, 2, 3)
    given = {"x": d.normal(*d.batch(), steps, channels * groups), "weight": d.normal(out * groups, channels, width),
             "padding": padding, "dilation": dilation, "stride": d.choice(1, 1, 2, 5), "groups": groups}  # fmt: skip
    if d.chance(0.5):
        given["bias"] = d.normal(out * groups)
    return Call("conv1d", given, {}, {})


def conv2d(d: Draw) -> Call:
    channels, out, groups = d.size(4), d.size(4), d.choice(1, 1, 2)
    height, width, dilation = d.integer(1, 3), d.integer(1, 3), (d.integer(1, 2), d.integer(1, 3))
    sizes = d.size(5, 12) + (height - 1) * dilation[0] + 1, d.size(5, 12) + (width - 1) * dilation[1] + 1
    given = {"x": d.normal(*d.batch(), *sizes, channels * groups), "groups": groups, "dilation": dilation,
             "weight": d.normal(out * groups, channels, height, width), "stride": d.choice(1, 2, (1, 3)),
             "padding": d.choice("causal", "valid", (0, 2))}  # fmt: skip
    if d.chance(0.5):
        given["bias"] = d.normal(out * groups)
    return Call("conv2d", given, {}, {})


def max_over_time(d: Draw) -> Call:
    batch, steps, width = d.batch(), d.size(9, 60), d.size(6)
    given = {"x": d.normal(*batch, steps, width)}
    if d.chance(0.5) or not batch:
        return Call("max_over_time", given, {}, {})
    given["lengths"] = d.rng.integers(0, steps + 1, batch)
    past = np.arange(steps) >= given["lengths"][..., None]
    return Call("max_over_time", given, {("x",): rows(past, width)}, {})


def causal_conv1d(d: Draw) -> Call:
    channels, width, batch = d.size(5, 40), d.integer(1, 5), d.batch()
    given = {"x": d.normal(*batch, d.size(9, 60), channels), "weight": d.normal(channels, width),
             "activation": d.choice(None, "silu")}  # fmt: skip
    if d.chance(0.5):
        given["bias"] = d.normal(channels)
    if d.chance(0.5):
        given["initial_state"] = d.normal(*batch, width - 1, channels)
    return Call("causal_conv1d", given, {}, {})


def _recurrence(function: str, gates: int) -> Callable[[Draw], Call]:
    def draw(d: Draw) -> Call:
        batch, steps, width, state = d.batch(), d.size(7, 20), d.size(6), d.size(5, 20)
        given = {"x": d.normal(*batch, steps, width), "weight_ih": 0.7 * d.normal(gates * state, width),
                 "weight_hh": 0.7 * d.normal(gates * state, state), "reverse": d.chance(0.3)}  # fmt: skip
        for name in ("bias_ih", "bias_hh"):
            if d.chance(0.5):
                given[name] = d.normal(gates * state)
        for name in ("h0", "c0") if function == "lstm" else ("h0",):
            if d.chance(0.4):
                given[name] = d.normal(*batch, state)
        if function == "lstm" and d.chance(0.3):
            given["peephole"] = d.normal(3 * state)
        if function == "gru":
            given["reset_after"] = d.chance(0.5)
        if function == "rnn":
            given["nonlinearity"] = d.choice("tanh", "relu")
        if not d.chance(0.4):
            return Call(function, given, {}, {})
        given["mask"] = d.bits(*batch, steps)
        return Call(function, given, {("x",): rows(~given["mask"], width)}, {})

    return draw


DRAWS: dict[str, Callable[[Draw], Call]] = {
    f.__name__: f
    for f in (
        *fuzz_heads.DRAWS, *fuzz_images.DRAWS, *fuzz_sequences.DRAWS, linear, embedding, segment_softmax, rotary,
        dropout, cross_entropy, conv1d, conv2d, causal_conv1d, max_over_time,
    )
} | {
    **{name: _masked_rows(name) for name in ("softmax", "log_softmax", "sparsemax", "entmax")},
    **{name: _norm(name) for name in ("layer_norm", "rms_norm")},
    **{name: _elementwise(name) for name in ("relu", "gelu", "silu", "tanh", "sigmoid")},
    **{name: _recurrence(name, gates) for name, gates in (("rnn", 1), ("lstm", 4), ("gru", 3))},
}  # fmt: skip

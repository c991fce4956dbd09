"""Rotary positions as loops over single numbers in float64."""

import math

import numpy as np


def rotary(
    x, positions=None, *, offset=0, dims=None, base=10_000.0, interleaved=False, scaling=None, factor=1.0,
    sections=None, axial=False, seq_len=None, layout="BHTD",
):  # fmt: skip
    """The output, float64: each pair as one complex number, times e^(i t w)."""
    out = np.array(x, np.float64)
    if layout == "BTHD":
        if positions is not None:
            positions = np.expand_dims(positions, -2 if sections is None else -3)
        same = {
            "offset": offset,
            "dims": dims,
            "base": base,
            "interleaved": interleaved,
            "scaling": scaling,
            "sections": sections,
            "axial": axial,
            "seq_len": seq_len,
        }
        return np.swapaxes(rotary(np.swapaxes(out, -3, -2), positions, **same, factor=factor), -3, -2)
    dims = out.shape[-1] if dims is None else dims
    if positions is None:
        positions = [offset + t for t in range(out.shape[-2])]
    positions = np.asarray(positions)
    if sections is None or (positions.ndim == 1 and axial is False and positions.shape == (out.shape[-2],)):
        positions, sections = positions[..., None], sections or (dims // 2,)
        positions = np.repeat(positions, len(sections), axis=-1)
    seq_len = positions.max() + 1 if seq_len is None else seq_len
    positions = np.broadcast_to(positions, (*out.shape[:-1], len(sections)))
    coordinates = [c for c, count in enumerate(sections) for _ in range(count)]
    for row in np.ndindex(positions.shape[:-1]):
        for n in range(dims // 2):
            b = base * factor ** (dims / (dims - 2)) if scaling == "ntk" else base
            if axial:
                within = n - coordinates.index(coordinates[n])
                frequency = base ** (-within / sections[coordinates[n]])
            else:
                frequency = scaled(b ** (-2 * n / dims), n, dims, base, scaling, factor, seq_len)
            angle = float(positions[(*row, coordinates[n])]) * frequency
            first, second = (2 * n, 2 * n + 1) if interleaved else (n, n + dims // 2)
            rotated = complex(out[(*row, first)], out[(*row, second)]) * complex(math.cos(angle), math.sin(angle))
            rotated *= attention_factor(scaling)
            out[(*row, first)], out[(*row, second)] = rotated.real, rotated.imag
    return out


def scaled(w, n, dims, base, scaling, factor, seq_len):
    """The frequency of pair n from its unscaled one."""
    name = type(scaling).__name__
    if scaling == "linear":
        return w / factor
    if name == "DynamicNTK" and seq_len > scaling.max_seq_len and dims > 2:
        growth = scaling.factor * seq_len / scaling.max_seq_len - (scaling.factor - 1)
        return (base * growth ** (dims / (dims - 2))) ** (-2 * n / dims)
    if name == "YaRN":
        limits = [
            dims * math.log(scaling.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(base))
            for turns in (scaling.beta_fast, scaling.beta_slow)
        ]
        if scaling.truncate:
            limits = [math.floor(limits[0]), math.ceil(limits[1])]
        low, high = max(limits[0], 0), min(limits[1], dims - 1)
        ramp = (n >= high) * 1.0 if low == high else min(max((n - low) / (high - low), 0.0), 1.0)
        ramp = 0.0 if low == high == n else ramp
        return w / scaling.factor * ramp + w * (1 - ramp)
    if name == "Llama3RoPE":
        turns = scaling.original_max_seq_len * w / (2 * math.pi)
        if turns < scaling.low_freq_factor:
            return w / scaling.factor
        if turns > scaling.high_freq_factor:
            return w
        smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        return (1 - smooth) * w / scaling.factor + smooth * w
    if name == "LongRoPE":
        return w / (scaling.long_factor if seq_len > scaling.original_max_seq_len else scaling.short_factor)[n]
    return w


def attention_factor(scaling):
    """What the rotated numbers are multiplied by."""
    given = getattr(scaling, "attention_factor", None)
    if given is not None:
        return given
    if type(scaling).__name__ == "YaRN":
        if scaling.mscale and scaling.mscale_all_dim:
            logs = [0.1 * scale * math.log(scaling.factor) + 1 for scale in (scaling.mscale, scaling.mscale_all_dim)]
            return logs[0] / logs[1]
        return 0.1 * math.log(scaling.factor) + 1
    if type(scaling).__name__ == "LongRoPE" and scaling.factor > 1:
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_seq_len))
    return 1.0

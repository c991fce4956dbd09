"""Make sdpa.npz: outputs and gradients of scaled dot-product attention, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_sdpa.py`.

Where `torch.nn.functional.scaled_dot_product_attention` can express a configuration (windows, offsets and key lengths
as its `attn_mask`), the truth is that function's; `attend` below, written out in torch operations, must agree with it.
Softcap, sinks, dropout by a given mask, and gradients of lse are `attend` alone. In fully masked rows PyTorch 2.13
gives output 0 and gradients 0, no NaN; `attend` gets the same by putting 0 in place of such rows before the softmax.

Inputs are multiples of 1/64, hence exact in float32 too: one truth serves both precisions.

The file holds two entries per configuration. `name/contents` is JSON: the keyword arguments that are no arrays, and
[array, dtype, shape] for each array; `name/numbers` has all their entries in that order, in float64. The arrays are the
inputs by parameter name, the cotangents `dout` and, where there is one, `dlse`, and the expected `out`, `lse` and
`grad_<input>`. One zip entry per array would double the size.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from sdpa_cases import CASES

DIFFERENTIABLE = ("query", "key", "value", "bias", "attn_mask", "sinks")
AGREEMENT = 1e-13  # attend and PyTorch's function differ by the order of float64 sums alone
SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32


def with_heads(x, layout):
    """(T, D), (B, T, D) or (*batch, H, T, D), in either layout, as (*batch, H, T, D)."""
    if x.ndim < 4:
        return x.unsqueeze(-3)
    return x.transpose(-3, -2) if layout == "BTHD" else x


def visible(given, options, shape):
    """All constraints together, (*batch, H, T, S), or None without constraints."""
    *batch, _, queries, keys = shape
    j = torch.arange(keys)
    position = torch.arange(queries)[:, None] + per_batch(given.get("q_offset", options.get("q_offset", 0)), batch)
    left, right = options.get("window") or (None, None)
    keep = torch.ones(shape, dtype=torch.bool)
    if options.get("is_causal"):
        keep = keep & (j <= position)
    if left is not None:
        keep = keep & (position - left <= j)
    if right is not None:
        keep = keep & (j <= position + right)
    if "kv_lengths" in given:
        keep = keep & (j < per_batch(given["kv_lengths"], batch))
    if "attn_mask" in given and given["attn_mask"].dtype == torch.bool:
        keep = keep & against_scores(given, "attn_mask", shape)
    return None if bool(keep.all()) else keep


def per_batch(number, batch):
    return torch.as_tensor(number).expand(batch).reshape(*batch, 1, 1, 1)


def against_scores(given, name, shape):
    """A mask or bias broadcast to the scores; inputs without heads have none in their masks either."""
    array = given[name]
    if given["query"].ndim < 4:
        *batch, _, queries, keys = shape
        return array.expand(*batch, queries, keys).unsqueeze(-3)
    return array.expand(shape)


def prepare(given, options):
    """query, key, value with a head axis, the visibility and the bias, both (*batch, Hq, T, S) or None."""
    query, key, value = (with_heads(given[n], options.get("layout")) for n in ("query", "key", "value"))
    shape = (*query.shape[:-1], key.shape[-2])
    keep = visible(given, options, shape)
    names = [n for n in ("bias", "attn_mask") if n in given and given[n].dtype != torch.bool]
    bias = against_scores(given, names[0], shape) if names else None
    return query, key, value, keep, bias


def attend(given, options):
    """Output and lse, (*batch, H, T, Dv) and (*batch, H, T), step by step."""
    query, key, value, keep, bias = prepare(given, options)
    key, value = (x.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3) for x in (key, value))
    scores = options.get("scale", query.shape[-1] ** -0.5) * (query @ key.mT)
    if "softcap" in options:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    keep = torch.ones_like(scores, dtype=torch.bool) if keep is None else keep
    if bias is not None:
        keep = keep & (bias != -torch.inf)
        scores = scores + torch.where(keep, bias, 0.0)
    logits = torch.where(keep, scores, -torch.inf)
    if "sinks" in given:
        sink = given["sinks"][:, None, None].expand(*scores.shape[:-1], 1)
        logits = torch.cat([logits, sink], -1)  # (*batch, H, T, S + 1)
    nothing = (logits == -torch.inf).all(-1, keepdim=True)
    logits = torch.where(nothing, 0.0, logits)
    weights = torch.where(nothing, 0.0, torch.softmax(logits, -1))[..., : keep.shape[-1]]
    lse = torch.where(nothing[..., 0], -torch.inf, torch.logsumexp(logits, -1))
    if "dropout_mask" in given:
        weights = weights * against_scores(given, "dropout_mask", weights.shape) / (1 - options["dropout_p"])
    return weights @ value, lse


def pytorch(given, options):
    """The output of PyTorch's own function."""
    query, key, value, keep, bias = prepare(given, options)
    grouped = query.shape[-3] != key.shape[-3]
    others = {"window", "q_offset", "kv_lengths", "attn_mask", "bias"} & {*given, *options}
    causal = options.get("is_causal", False) and not others
    mask = None if causal else keep
    if bias is not None:
        mask = bias if keep is None else torch.where(keep, bias, -torch.inf)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=options.get("scale"), enable_gqa=grouped
    )


def results(function, arrays, options, dtype):
    """Output, lse (None from PyTorch's function) and gradients, as float64 NumPy arrays in the layout of the inputs."""
    given = {n: torch.from_numpy(a).to(dtype if a.dtype == np.float64 else None) for n, a in arrays.items()}
    inputs = {n: given[n].requires_grad_() for n in DIFFERENTIABLE if n in given and given[n].dtype == dtype}
    made = function(given, options)
    out, lse = made if isinstance(made, tuple) else (made, None)
    if given["query"].ndim < 4:
        out, lse = out.squeeze(-3), lse.squeeze(-2) if lse is not None else None
    elif options.get("layout") == "BTHD":
        out = out.transpose(-3, -2)
    loss = (out * given["dout"]).sum()
    if "dlse" in given:
        loss = loss + (torch.where(lse == -torch.inf, 0.0, lse) * given["dlse"]).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True, allow_unused=True)
    found = {"out": out, "lse": lse, **{f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)}}
    return {n: x.detach().double().numpy() for n, x in found.items() if x is not None}


def largest_difference(found, expected):
    """Over all arrays, relative to the largest entry of each, or to 1 where all entries are smaller."""
    worst = 0.0
    for name, x in found.items():
        assert x.shape == expected[name].shape, (name, x.shape, expected[name].shape)
        finite = np.isfinite(expected[name])
        assert np.array_equal(x[~finite], expected[name][~finite]), name
        truth = expected[name][finite]
        worst = max(worst, float(np.max(np.abs(x[finite] - truth), initial=0.0) / np.max(np.abs(truth), initial=1.0)))
    return worst


def hide_unseen(arrays, options):
    """Put NaN and infinity in keys that are fully masked, which may change nothing."""
    given = {n: torch.from_numpy(a) for n, a in arrays.items()}
    keep = prepare(given, options)[3]
    unseen = ~keep.any(-2).any(-2).numpy()  # (*batch, S)
    hidden = {n: np.moveaxis(arrays[n].copy(), -3, -2) for n in ("key", "value")}  # (*batch, S, H, D)
    hidden["key"][unseen], hidden["value"][unseen] = np.nan, np.inf
    return {**arrays, **{n: np.moveaxis(a, -2, -3) for n, a in hidden.items()}}


def packed(name, options, arrays):
    """The two entries of one configuration."""
    contents = {"kwargs": options, "arrays": [[n, a.dtype.name, a.shape] for n, a in arrays.items()]}
    numbers = np.concatenate([a.astype(np.float64).ravel() for a in arrays.values()])
    return {f"{name}/contents": np.array(json.dumps(contents)), f"{name}/numbers": numbers}


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, by_function, single = {}, 0, 0.0
    for name, case in CASES.items():
        arrays = case.arrays(np.random.default_rng(zlib.crc32(name.encode())))
        expected = results(attend, arrays, case.options, torch.float64)
        if not {"softcap", "dropout_p"} & {*case.options} and not {"sinks", "dlse"} & {*arrays}:
            truth = results(pytorch, arrays, case.options, torch.float64)
            assert largest_difference(truth, expected) < AGREEMENT, name
            expected |= truth
            by_function += 1
        difference = largest_difference(results(attend, arrays, case.options, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        arrays = hide_unseen(arrays, case.options) if case.hide_unseen else arrays
        stored |= packed(name, case.options, {**arrays, **expected})
    path = Path(__file__).with_name("sdpa.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {by_function} by PyTorch's function, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

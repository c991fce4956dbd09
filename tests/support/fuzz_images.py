"""Random calls of attention on images and volumes, of approximations, and of latent attention."""

from __future__ import annotations

from tests.support.fuzz_draw import Arrays, Call, Draw, scores


def _qkv(d: Draw, *of: int) -> Arrays:
    """Query, key and value (*of, D) of equal sizes, and a value of another width."""
    dim = d.size(6, 20, least=1)
    return {"query": d.normal(*of, dim), "key": d.normal(*of, dim), "value": d.normal(*of, d.size(7, 20))}


def neighborhood_attention(d: Draw) -> Call:
    batch, heads, axes = d.size(2), d.size(3), d.integer(1, 3)
    dilation = tuple(d.integer(1, 2) for _ in range(axes))
    kernel = tuple(d.choice(1, 3, 5) for _ in range(axes))
    size = tuple(k * n + d.integer(0, 3) for k, n in zip(kernel, dilation, strict=True))
    given = _qkv(d, batch, *size, heads)
    options = {"kernel_size": kernel, "dilation": dilation, "is_causal": tuple(d.chance(0.3) for _ in range(axes))}
    if d.chance(0.5):
        given["relative_bias"] = d.normal(heads, *(2 * k - 1 for k in kernel))
    return Call("neighborhood_attention", {**given, **options}, {}, {})


def shifted_window_attention(d: Draw) -> Call:
    batch, heads, axes = d.size(2), d.size(3), d.integer(1, 3)
    window = tuple(d.integer(1, 3) for _ in range(axes))
    shift = tuple(d.integer(0, k - 1) for k in window)
    given = _qkv(d, batch, *(k * d.integer(1, 3) for k in window), heads)
    if d.chance(0.5):
        given["relative_bias"] = d.normal(heads, *(2 * k - 1 for k in window))
    return Call("shifted_window_attention", {**given, "window_size": window, "shift": shift}, {}, {})


def axial_attention(d: Draw) -> Call:
    batch, heads, axes = d.size(2), d.size(3), d.integer(1, 3)
    options: Arrays = {"axis": d.integer(1, axes), "is_causal": d.chance(0.5)}
    if d.chance(0.3):
        options["softcap"] = 2.0
    return Call("axial_attention", {**_qkv(d, batch, *(d.size(5, 9) for _ in range(axes)), heads), **options}, {}, {})


def deformable_attention(d: Draw) -> Call:
    levels = tuple((d.integer(1, 6), d.integer(1, 6)) for _ in range(d.integer(1, 3)))
    batch, heads, dim, pixels = d.size(2), d.size(3), d.size(5), sum(H * W for H, W in levels)
    of = (batch, d.size(6), heads, len(levels), d.integer(1, 4))
    given = {
        "value": d.normal(batch, pixels, heads, dim),
        "spatial_shapes": levels,
        "sampling_locations": d.rng.uniform(-0.3, 1.3, (*of, 2)),
        "attention_weights": d.normal(*of),
    }
    return Call("deformable_attention", given, {}, {})


def linformer_attention(d: Draw) -> Call:
    batch, keys, combined, dim = (d.size(3),), d.size(12), d.integer(1, 5), d.size(6, 20, least=1)
    kv_heads, group = d.integer(1, 3), d.integer(1, 3)
    given = {
        "query": d.normal(*batch, group * kv_heads, d.size(9), dim),
        "key": d.normal(*batch, kv_heads, keys, dim),
        "value": d.normal(*batch, kv_heads, keys, d.size(7)),
        "key_projection": d.normal(combined, keys),
    }
    if d.chance(0.5):
        given["value_projection"] = d.normal(combined, keys)
    return Call("linformer_attention", given, {}, {})


def nystrom_attention(d: Draw) -> Call:
    """With one step of the iteration: more of them enlarge roundings by the condition of the matrix."""
    batch, heads, queries, keys, dim = d.batch(1), d.integer(1, 3), d.size(12, 40), d.size(12, 40), d.size(6, least=1)
    given = {
        "query": d.normal(*batch, heads, queries, dim),
        "key": d.normal(*batch, heads, keys, dim),
        "value": d.normal(*batch, heads, keys, d.size(7)),
    }
    options = {"num_landmarks": d.integer(1, max(1, min(queries, keys))), "iterations": 1}
    return Call("nystrom_attention", {**given, **options}, {}, {})


def lsh_attention(d: Draw) -> Call:
    batch, heads, chunk, dim = d.batch(1), d.integer(1, 3), d.integer(1, 5), d.integer(1, 6)
    T = chunk * d.integer(1, 4)
    given = {
        "query": d.rng.standard_normal((*batch, heads, T, dim)),  # equal numbers are in no bucket by more than rounding
        "value": d.normal(*batch, heads, T, d.size(7)),
        "rotations": d.rng.standard_normal((d.integer(1, 3), dim, d.integer(1, 3))),
    }
    options = {"chunk_size": chunk, "is_causal": d.chance(0.5)}
    return Call("lsh_attention", {**given, **options}, {}, {})


def latent_attention(d: Draw) -> Call:
    batch, heads, queries, keys = d.batch(1), d.integer(1, 3), d.size(9), d.size(11)
    plain, rotated, latent = d.integer(1, 5), d.integer(0, 3), d.size(6, 12, least=1)
    s = scores(d, batch, heads, queries, keys, without=("attn_mask", "bias", "sinks"))
    given = {
        "query": d.normal(*batch, heads, queries, plain + rotated),
        "latent": d.normal(*batch, keys, latent + rotated),
        "key_up": d.normal(heads, plain, latent),
        "value_up": d.normal(heads, d.size(7), latent),
        "absorb": d.choice(None, True, False),
    }
    return Call("latent_attention", {**given, **s.options}, {}, {})


DRAWS = (
    neighborhood_attention, shifted_window_attention, axial_attention, deformable_attention, linformer_attention,
    nystrom_attention, lsh_attention, latent_attention,
)  # fmt: skip

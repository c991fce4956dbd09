"""Make spatial.npz: attention on images, and gradients, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_spatial.py`.

Neighborhood attention (arXiv:2204.07143) gathers the windows of equation 3, shifted Swin windows (arXiv:2103.14030) are
computed by rolling, cutting and masking as in section 3.2, and deformable attention (arXiv:2010.04159) by
`torch.nn.functional.grid_sample` of each level, without aligned corners and with zeros beyond the border.

The form of the file is that of sdpa.npz. The cotangent of `out` is `dout`; expected are `out` and `grad_<input>`.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from make_sdpa import packed

HEADS, D = 2, 4


def rounded(rng, *shape):
    return np.round(64 * rng.standard_normal(shape)) / 64


def images(rng, size, bias):
    arrays = {name: rounded(rng, 2, *size, HEADS, D) for name in ("query", "key", "value", "dout")}
    return {**arrays, "relative_bias": rounded(rng, HEADS, *bias)} if bias else arrays


def window_start(i, length, kernel, d):
    """The first neighbor of position i."""
    index, grid = divmod(i, d)
    positions = len(range(grid, length, d))
    return min(max(index - kernel // 2, 0), positions - kernel) * d + grid


def neighborhood(given, kernel_size, dilation):
    query, key, value, bias = (given.get(name) for name in ("query", "key", "value", "relative_bias"))
    size, out = query.shape[1:-2], torch.zeros_like(value)
    for i in np.ndindex(*size):
        along = []
        for x, length, kernel, d in zip(i, size, kernel_size, dilation, strict=True):
            first = window_start(x, length, kernel, d)
            along.append(torch.arange(first, first + kernel * d, d))
        at = torch.meshgrid(*along, indexing="ij")
        keys, values = (x[(slice(None), *at)].flatten(1, -3) for x in (key, value))  # (B, N, heads, D)
        scores = torch.einsum("bhd,bnhd->bhn", query[(slice(None), *i)], keys) / D**0.5
        if bias is not None:
            steps = zip(at, i, dilation, kernel_size, strict=True)
            entries = [torch.div(each - x, d, rounding_mode="floor") + kernel - 1 for each, x, d, kernel in steps]
            scores = scores + bias[(slice(None), *entries)].flatten(1)
        weights = scores.softmax(-1)
        out = out.index_put(
            (torch.arange(len(out)), *(torch.tensor(x) for x in i)), torch.einsum("bhn,bnhd->bhd", weights, values)
        )
    return out


def partition(x, M):
    """(B, H, W, ...) -> (B windows, M M, ...)."""
    B, H, W = x.shape[:3]
    x = x.reshape(B, H // M, M, W // M, M, *x.shape[3:])
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def swin(given, window_size, shift):
    B, H, W = given["query"].shape[:3]
    M = window_size
    q, k, v = (partition(given[name].roll((-shift, -shift), (1, 2)), M) for name in ("query", "key", "value"))
    scores = torch.einsum("nihd,njhd->nhij", q, k) / D**0.5
    y, x = torch.meshgrid(torch.arange(M), torch.arange(M), indexing="ij")
    y, x = y.flatten(), x.flatten()
    entries = (y[:, None] - y + M - 1) * (2 * M - 1) + x[:, None] - x + M - 1
    scores = scores + given["relative_bias"].flatten(1)[:, entries]
    if shift:
        region, count = torch.zeros(1, H, W), 0
        for rows in (slice(0, -M), slice(-M, -shift), slice(-shift, None)):
            for columns in (slice(0, -M), slice(-M, -shift), slice(-shift, None)):
                region[:, rows, columns], count = count, count + 1
        region = partition(region, M)  # (windows, M M)
        mask = (region[:, None] != region[:, :, None]).repeat(B, 1, 1)[:, None]
        scores = scores.masked_fill(mask, -torch.inf)
    out = torch.einsum("nhij,njhd->nihd", scores.softmax(-1), v)
    out = out.reshape(B, H // M, W // M, M, M, HEADS, D).transpose(2, 3).reshape(B, H, W, HEADS, D)
    return out.roll((shift, shift), (1, 2))


def deformable(given, spatial_shapes):
    value, locations, weights = (given[name] for name in ("value", "sampling_locations", "attention_weights"))
    B, T, heads, _, points, _ = locations.shape
    sampled = []
    parts = value.split([H * W for H, W in spatial_shapes], dim=1)
    for level, ((H, W), part) in enumerate(zip(spatial_shapes, parts, strict=True)):
        image = part.permute(0, 2, 3, 1).reshape(B * heads, D, H, W)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B heads, T, points, 2)
        found = torch.nn.functional.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
        sampled.append(found.reshape(B, heads, D, T, points))
    return torch.einsum("bhdtln,bthln->bthd", torch.stack(sampled, -2), weights)


LEVELS = ((4, 5), (2, 3))
CASES = {
    "neighborhood: a line": (neighborhood, {"kernel_size": (3,), "dilation": (2,)}, (9,), (5,)),
    "neighborhood: an image": (neighborhood, {"kernel_size": (3, 5), "dilation": (1, 1)}, (5, 7), (5, 9)),
    "neighborhood: dilated": (neighborhood, {"kernel_size": (3, 3), "dilation": (1, 2)}, (4, 7), ()),
    "swin": (swin, {"window_size": 3, "shift": 0}, (6, 6), (5, 5)),
    "swin: shifted": (swin, {"window_size": 3, "shift": 1}, (6, 9), (5, 5)),
    "deformable": (deformable, {"spatial_shapes": LEVELS}, (), ()),
}


def main():
    """Write the file."""
    stored = {}
    for name, (function, options, size, bias) in CASES.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if size:
            arrays = images(rng, size, bias)
        else:
            of = (2, 6, HEADS, len(LEVELS), 3)
            arrays = {"value": rounded(rng, 2, 26, HEADS, D), "attention_weights": rounded(rng, *of)}
            # On odd multiples of 1 / 64 no point is on a row or column of pixels, which are multiples of 1 / 60.
            arrays["sampling_locations"] = (2 * rng.integers(-4, 36, (*of, 2)) + 1) / 64
            arrays["dout"] = rounded(rng, 2, 6, HEADS, D)
        given = {key: torch.from_numpy(x) for key, x in arrays.items()}
        inputs = {key: x.requires_grad_() for key, x in given.items() if key != "dout"}
        out = function(given, **options)
        grads = torch.autograd.grad((out * given["dout"]).sum(), list(inputs.values()))
        found = {"out": out, **{f"grad_{key}": grad for key, grad in zip(inputs, grads, strict=True)}}
        stored |= packed(name, options, {**arrays, **{key: x.detach().numpy() for key, x in found.items()}})
    path = Path(__file__).with_name("spatial.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {path.stat().st_size} bytes; torch {torch.__version__}")


if __name__ == "__main__":
    main()

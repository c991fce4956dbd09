"""Attention on images in PyTorch, as models without kernels of their own compute it, with gradients by autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def neighborhood(query: Any, key: Any, value: Any, kernel_size: int, relative_bias: Any = None) -> Any:
    """All pairs of an image with a dense mask; a bias is gathered for all pairs."""
    import torch

    mask, entries = _pairs(*query.shape[1:3], kernel_size)
    if relative_bias is not None:
        mask = relative_bias.flatten(1)[:, entries].masked_fill(~mask, -torch.inf)
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    return out.transpose(1, 2).reshape(value.shape)


def neighborhood_by_unfolding(query: Any, key: Any, value: Any, kernel_size: int) -> Any:
    """The windows of all positions are copied, then multiplied."""
    B, H, W, heads, D = query.shape
    rows, columns = (_starts(size, kernel_size) for size in (H, W))

    def windows(x: Any) -> Any:  # (B, heads, H W, K K, D)
        every = x.permute(0, 3, 4, 1, 2).unfold(3, kernel_size, 1).unfold(4, kernel_size, 1)
        return every[:, :, :, rows][:, :, :, :, columns].permute(0, 1, 3, 4, 5, 6, 2).flatten(4, 5).flatten(2, 3)

    q = query.permute(0, 3, 1, 2, 4).reshape(B, heads, H * W, 1, D)
    weights = (q @ windows(key).mT / D**0.5).softmax(-1)
    return (weights @ windows(value))[:, :, :, 0].transpose(1, 2).reshape(value.shape)


def shifted_windows(query: Any, key: Any, value: Any, window_size: int, shift: int, relative_bias: Any) -> Any:
    """Roll, cut, mask, as the paper's code."""
    import torch

    B, H, W, heads, D = query.shape
    q, k, v = (_cut(x.roll((-shift, -shift), (1, 2)), window_size).transpose(1, 2) for x in (query, key, value))
    entries, same = _window_pairs(H, W, window_size, shift)
    bias = relative_bias.flatten(1)[:, entries]  # (heads, T, T)
    bias = bias.masked_fill(~same, -torch.inf).repeat(B, 1, 1, 1)  # (B windows, heads, T, T)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2)
    out = out.reshape(B, H // window_size, W // window_size, window_size, window_size, heads, D)
    return out.transpose(2, 3).reshape(value.shape).roll((shift, shift), (1, 2))


def deformable(value: Any, spatial_shapes: Any, sampling_locations: Any, attention_weights: Any) -> Any:
    """`grid_sample` of each level, as the paper's code without its own kernel."""
    import torch

    B, _, heads, D = value.shape
    T, points = sampling_locations.shape[1], sampling_locations.shape[4]
    sampled = []
    for level, part in enumerate(value.split([H * W for H, W in spatial_shapes], dim=1)):
        image = part.permute(0, 2, 3, 1).reshape(B * heads, D, *spatial_shapes[level])
        grid = 2 * sampling_locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        sampled.append(torch.nn.functional.grid_sample(image, grid, align_corners=False))
    weights = attention_weights.transpose(1, 2).reshape(B * heads, 1, T, len(sampled) * points)
    out = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1)  # (B heads, D, T)
    return out.reshape(B, heads, D, T).permute(0, 3, 1, 2)


def _starts(size: int, kernel_size: int) -> Any:
    import torch

    return (torch.arange(size) - kernel_size // 2).clamp(0, size - kernel_size)


@functools.lru_cache(maxsize=4)
def _pairs(H: int, W: int, kernel_size: int) -> tuple[Any, Any]:
    """For all pairs of positions of an image whether the second is in the window of the first, and the bias's entry."""
    import torch

    inside, steps = [], []
    for size in (H, W):
        positions = torch.arange(size)
        back = positions - _starts(size, kernel_size)[:, None]
        inside.append((back >= 0) & (back < kernel_size))
        steps.append((positions - positions[:, None]).clamp(1 - kernel_size, kernel_size - 1) + kernel_size - 1)
    mask = inside[0][:, None, :, None] & inside[1][None, :, None, :]
    entries = steps[0][:, None, :, None] * (2 * kernel_size - 1) + steps[1][None, :, None, :]
    return mask.reshape(H * W, H * W), entries.reshape(H * W, H * W)


@functools.lru_cache(maxsize=4)
def _window_pairs(H: int, W: int, M: int, shift: int) -> tuple[Any, Any]:
    """For the pairs of a window the bias's entry, and for those of each window whether they were in one before."""
    import torch

    y, x = (each.flatten() for each in torch.meshgrid(torch.arange(M), torch.arange(M), indexing="ij"))
    entries = (y[:, None] - y + M - 1) * (2 * M - 1) + x[:, None] - x + M - 1
    rows, columns = torch.arange(H) >= H - shift, torch.arange(W) >= W - shift
    labels = _cut((2 * rows[:, None] + columns)[None, :, :, None, None], M)[:, :, 0, 0]  # (windows, T)
    return entries, (labels[:, :, None] == labels[:, None])[:, None]


def _cut(x: Any, M: int) -> Any:
    """(B, H, W, ...) -> (B windows, M M, ...)."""
    B, H, W = x.shape[:3]
    return x.reshape(B, H // M, M, W // M, M, *x.shape[3:]).transpose(2, 3).flatten(0, 2).flatten(1, 2)


IMAGES: dict[str, Callable[..., Any]] = {
    "neighborhood_attention": neighborhood,
    "shifted_window_attention": shifted_windows,
    "deformable_attention": deformable,
}

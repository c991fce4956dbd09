"""The configurations that make_sdpa.py freezes: sizes, options and how each array argument is drawn."""

from typing import NamedTuple

import numpy as np


class Sizes(NamedTuple):
    """B, Hq, Hkv, T, S, D, Dv: pairwise distinct where they can be, so that axes cannot be confused."""

    batch: tuple[int, ...] = (2,)
    heads: int | None = 3
    kv_heads: int | None = None
    queries: int = 5
    keys: int = 7
    dim: int = 4
    value_dim: int = 1


class Case(NamedTuple):
    """`options` are the arguments that JSON can hold, `drawn` maps the others to functions of a generator."""

    sizes: Sizes
    drawn: dict
    options: dict
    hide_unseen: bool

    def arrays(self, rng):
        """All array arguments by name, and the cotangents dout (and dlse)."""
        batch, heads, kv_heads, queries, keys, dim, value_dim = self.sizes
        over_queries = batch if heads is None else (*batch, heads)
        over_keys = batch if heads is None else (*batch, kv_heads or heads)
        bthd = self.options.get("layout") == "BTHD"

        def laid_out(x):
            return np.ascontiguousarray(np.swapaxes(x, -3, -2)) if bthd else x

        return {
            "query": laid_out(normal(*over_queries, queries, dim)(rng)),
            "key": laid_out(normal(*over_keys, keys, dim)(rng)),
            "value": laid_out(normal(*over_keys, keys, value_dim)(rng)),
            "dout": laid_out(normal(*over_queries, queries, value_dim)(rng)),
            **{name: draw(rng) for name, draw in self.drawn.items()},
        }


def normal(*shape, mean=0.0):
    """Multiples of 1/64 with deviation 2: the softmax is far from uniform, and float32 holds them exactly."""
    return lambda rng: np.round(64 * (mean + 2 * rng.standard_normal(shape))) / 64


def with_infinities(*shape, rate=0.3):
    """A bias of which some entries are -inf."""
    return lambda rng: np.where(rng.random(shape) < rate, -np.inf, normal(*shape)(rng))


def bits(*shape, keep=0.6):
    """A bool array with about this share of True."""
    return lambda rng: rng.random(shape) < keep


def numbers(*values):
    """Integers, as given."""
    return lambda rng: np.array(values, np.int64)


def sparse_rows(*shape, empty):
    """A mask whose rows `empty` are fully masked."""

    def draw(rng):
        mask = bits(*shape)(rng)
        mask[..., list(empty), :] = False
        return mask

    return draw


def case(sizes=(), hide_unseen=False, **arguments):
    drawn = {name: value for name, value in arguments.items() if callable(value)}
    options = {name: value for name, value in arguments.items() if name not in drawn}
    return Case(Sizes(**dict(sizes)), drawn, options, hide_unseen)


def sizes(**given):
    return given


# Default sizes: B 2, H 3, T 5, S 7, D 4, Dv 1.
CASES = {
    # shapes
    "plain": case(sizes(value_dim=6)),
    "no-heads": case(sizes(batch=(), heads=None, value_dim=3), is_causal=True),
    "no-heads-batch": case(sizes(heads=None, value_dim=3)),
    "two-batch-axes": case(sizes(batch=(2, 3), heads=1, queries=4, keys=5, dim=7)),
    "layout-bthd": case(sizes(value_dim=6), layout="BTHD"),
    "layout-bthd-grouped-causal": case(sizes(heads=4, kv_heads=2, batch=(3,), dim=6), layout="BTHD", is_causal=True),
    "one-of-each": case(sizes(batch=(1,), heads=1, queries=1, keys=1, dim=1, value_dim=1)),
    "one-query": case(sizes(queries=1, keys=13, value_dim=5)),
    "one-key": case(sizes(keys=1, value_dim=6)),
    "wide-heads": case(sizes(batch=(1,), heads=2, queries=3, keys=5, dim=65, value_dim=33)),
    "63-queries": case(sizes(batch=(1,), heads=2, queries=63, keys=13, dim=3), is_causal=True),
    "63-keys": case(sizes(heads=1, queries=7, keys=63, dim=3, value_dim=5), window=[11, 13]),
    "131-keys": case(sizes(batch=(1,), heads=2, queries=3, keys=131, dim=4), is_causal=True, q_offset=128),
    "131-queries": case(sizes(batch=(1,), heads=2, queries=131, keys=7, dim=3), window=[120, None]),
    "no-keys": case(sizes(keys=0, value_dim=6)),
    "no-queries": case(sizes(queries=0, value_dim=6)),
    "no-batch": case(sizes(batch=(0,), value_dim=6)),
    "scale": case(scale=0.3),
    "scale-one-no-heads": case(sizes(batch=(), heads=None), scale=1.0),
    # causal, offsets, windows
    "causal-square": case(sizes(queries=7, dim=5), is_causal=True),
    "causal-more-keys": case(is_causal=True),
    "causal-more-queries": case(sizes(queries=13, batch=(1,)), is_causal=True),
    "causal-bottom-right": case(is_causal=True, q_offset=2),
    "causal-bottom-right-more-queries": case(sizes(queries=7, keys=5), is_causal=True, q_offset=-2),
    "causal-one-query": case(sizes(queries=1, keys=13), is_causal=True, q_offset=9),
    "causal-offset-per-batch": case(is_causal=True, q_offset=numbers(-3, 4)),
    "causal-offset-past-the-keys": case(is_causal=True, q_offset=20),
    "causal-unseen-keys": case(hide_unseen=True, is_causal=True),
    "window-left": case(sizes(queries=9), window=[2, 0]),
    "window-left-only": case(window=[1, None]),
    "window-right-only": case(window=[None, 1]),
    "window-both": case(window=[1, 2]),
    "window-self": case(window=[0, 0]),
    "window-unbounded": case(window=[None, None]),
    "window-causal": case(window=[2, 3], is_causal=True),
    "window-offset-per-batch": case(window=[1, 1], q_offset=numbers(3, -2)),
    "window-past-the-keys": case(sizes(queries=13, keys=4, dim=5, batch=(1,)), window=[2, 1]),
    "window-unseen-keys": case(sizes(keys=11), hide_unseen=True, window=[1, 0], q_offset=4),
    # masks
    "mask-queries-keys": case(attn_mask=bits(5, 7)),
    "mask-full": case(attn_mask=bits(2, 3, 5, 7)),
    "mask-batch-keys": case(attn_mask=bits(2, 1, 1, 7)),
    "mask-heads": case(attn_mask=bits(3, 5, 1)),
    "mask-keys": case(attn_mask=bits(7)),
    "mask-no-heads-batch": case(sizes(heads=None, value_dim=3), attn_mask=bits(2, 1, 7)),
    "mask-empty-rows": case(attn_mask=sparse_rows(2, 3, 5, 7, empty=(0, 3))),
    "mask-nothing-seen": case(attn_mask=bits(2, 1, 5, 7, keep=0.0)),
    "mask-causal": case(attn_mask=bits(3, 5, 7), is_causal=True),
    "mask-causal-window-lengths": case(
        attn_mask=bits(5, 7, keep=0.8), is_causal=True, window=[3, 0], kv_lengths=numbers(6, 3), q_offset=1
    ),
    "lengths": case(kv_lengths=numbers(7, 3)),
    "lengths-zero": case(kv_lengths=numbers(0, 5)),
    "lengths-causal": case(kv_lengths=numbers(2, 6), is_causal=True, q_offset=2),
    "lengths-no-heads": case(sizes(heads=None), kv_lengths=numbers(1, 4)),
    "lengths-unseen-keys": case(hide_unseen=True, kv_lengths=numbers(0, 4)),
    # biases
    "bias-full": case(bias=normal(2, 3, 5, 7)),
    "bias-queries-keys": case(bias=normal(5, 7)),
    "bias-heads-keys": case(bias=normal(3, 1, 7)),
    "bias-batch-keys": case(bias=normal(2, 1, 1, 7)),
    "bias-heads-queries": case(bias=normal(1, 3, 5, 1)),
    "bias-one": case(bias=normal(1, 1)),
    "bias-no-heads-batch": case(sizes(heads=None), bias=normal(2, 1, 7)),
    "bias-as-attn-mask": case(attn_mask=normal(2, 1, 5, 7)),
    "bias-infinite": case(bias=with_infinities(3, 5, 7)),
    "bias-infinite-rows": case(sizes(keys=2), bias=with_infinities(5, 2, rate=0.7)),
    "bias-causal": case(bias=normal(3, 5, 7), is_causal=True),
    "bias-and-mask": case(bias=normal(2, 1, 5, 7), attn_mask=sparse_rows(5, 7, empty=(2,))),
    "bias-large": case(bias=normal(5, 7, mean=96.0)),
    "bias-small": case(bias=normal(5, 7, mean=-128.0)),
    # grouped heads
    "grouped": case(sizes(heads=6, kv_heads=3), enable_gqa=True),
    "grouped-inferred": case(sizes(heads=6, kv_heads=2, batch=(1,), dim=3)),
    "grouped-one": case(sizes(heads=4, kv_heads=1, dim=3), enable_gqa=True, is_causal=True),
    "grouped-bias-causal": case(sizes(heads=6, kv_heads=2, batch=(1,), dim=3), bias=normal(6, 5, 7), is_causal=True),
    # softcap, sinks, dropout, lse
    "softcap": case(sizes(value_dim=6), softcap=5.0),
    "softcap-tight-causal": case(softcap=1.5, is_causal=True),
    "softcap-bias-lengths": case(softcap=3.0, bias=normal(3, 5, 7), kv_lengths=numbers(4, 0)),
    "sinks": case(sizes(value_dim=6), sinks=normal(3)),
    "sinks-empty-rows": case(sinks=normal(3), attn_mask=sparse_rows(3, 5, 7, empty=(1, 4))),
    "sinks-no-heads": case(sizes(heads=None, batch=()), sinks=normal(1), is_causal=True),
    "sinks-grouped-bias": case(sizes(heads=4, kv_heads=2, dim=3), sinks=normal(4), bias=normal(4, 1, 7)),
    "dropout": case(sizes(value_dim=6), dropout_p=0.25, dropout_mask=bits(2, 3, 5, 7, keep=0.75)),
    "dropout-grouped-causal-bias": case(
        sizes(heads=4, kv_heads=2, dim=3),
        dropout_p=0.4,
        dropout_mask=bits(2, 4, 5, 7),
        bias=normal(5, 7),
        is_causal=True,
    ),
    "lse-cotangent": case(dlse=normal(2, 3, 5)),
    "lse-cotangent-empty-rows": case(sizes(queries=7, keys=5), dlse=normal(2, 3, 7), is_causal=True, q_offset=-2),
    "lse-cotangent-sinks-grouped": case(sizes(heads=4, kv_heads=2, dim=3), dlse=normal(2, 4, 5), sinks=normal(4)),
    "everything": case(
        sizes(batch=(2,), heads=6, kv_heads=3, queries=5, keys=9, dim=4, value_dim=1),
        attn_mask=bits(5, 9, keep=0.9),
        bias=normal(6, 1, 9),
        dropout_p=0.2,
        dropout_mask=bits(2, 6, 5, 9, keep=0.8),
        is_causal=True,
        window=[5, 2],
        q_offset=numbers(3, 4),
        kv_lengths=numbers(9, 6),
        softcap=6.0,
        sinks=normal(6),
        scale=0.4,
        layout="BTHD",
        enable_gqa=True,
    ),
}

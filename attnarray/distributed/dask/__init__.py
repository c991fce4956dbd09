"""Attention on Dask arrays: graphs over blocks, for arrays larger than memory and for clusters.

Needs dask, of the extra `distributed`. The functions have the names of those of `attnarray`, and are triples like them.
"""

from attnarray.distributed.dask.multi_head import (
    DaskMultiHeadContext,
    multi_head_attention,
    multi_head_attention_bwd,
    multi_head_attention_fwd,
)
from attnarray.distributed.dask.scaled_dot_product import (
    DaskAttentionContext,
    scaled_dot_product_attention,
    scaled_dot_product_attention_bwd,
    scaled_dot_product_attention_fwd,
)
from attnarray.tree import shorten_reprs

__all__ = [
    "DaskAttentionContext",
    "DaskMultiHeadContext",
    "multi_head_attention",
    "multi_head_attention_bwd",
    "multi_head_attention_fwd",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_bwd",
    "scaled_dot_product_attention_fwd",
]

shorten_reprs()


def __dir__() -> list[str]:
    return __all__

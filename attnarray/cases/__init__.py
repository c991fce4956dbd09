"""One or more `Case` per public triple, with pairwise distinct sizes: for `attnarray check`, `bench` and the tests.

A new mechanism adds its cases here; its forward is compared with `tests/naive/<function>.py`.
"""

from attnarray.cases.approximate import APPROXIMATE_CASES
from attnarray.cases.attend import ATTEND_CASES
from attnarray.cases.case import Case
from attnarray.cases.din import DIN_CASES
from attnarray.cases.dot_product import DOT_PRODUCT_CASES
from attnarray.cases.graph import GRAPH_CASES
from attnarray.cases.latent import LATENT_CASES
from attnarray.cases.linear_attention import GENERALIZED_DELTA_CASES, LINEAR_ATTENTION_CASES
from attnarray.cases.local import LOCAL_CASES
from attnarray.cases.multi_head import MULTI_HEAD_CASES
from attnarray.cases.multiplicative import COMBINE_CASES, MULTIPLICATIVE_CASES, SCALED_CASES
from attnarray.cases.ops import OPS_CASES
from attnarray.cases.pairs import PAIR_CASES
from attnarray.cases.positions import RELATIVE_CASES, ROTARY_CASES
from attnarray.cases.ragged import RAGGED_CASES
from attnarray.cases.recurrent import RECURRENT_CASES
from attnarray.cases.scoring import SCORING_CASES
from attnarray.cases.sequences import SEQUENCE_CASES
from attnarray.cases.sparse import BLOCK_TOPK_CASES, HARD_CASES, SPARSE_CASES
from attnarray.cases.spatial import SPATIAL_CASES
from attnarray.cases.variants import VARIANT_CASES

CASES: tuple[Case, ...] = (
    *DOT_PRODUCT_CASES,
    *RAGGED_CASES,
    *ATTEND_CASES,
    *LATENT_CASES,
    *VARIANT_CASES,
    *MULTI_HEAD_CASES,
    *SCORING_CASES,
    *MULTIPLICATIVE_CASES,
    *SCALED_CASES,
    *COMBINE_CASES,
    *DIN_CASES,
    *PAIR_CASES,
    *LOCAL_CASES,
    *RECURRENT_CASES,
    *GRAPH_CASES,
    *LINEAR_ATTENTION_CASES,
    *GENERALIZED_DELTA_CASES,
    *SPATIAL_CASES,
    *APPROXIMATE_CASES,
    *RELATIVE_CASES,
    *ROTARY_CASES,
    *SPARSE_CASES,
    *HARD_CASES,
    *BLOCK_TOPK_CASES,
    *OPS_CASES,
    *SEQUENCE_CASES,
)

__all__ = ["CASES", "Case"]

"""Masks as values: which keys each query may attend to; `a & b`, `a | b` and `~a` combine them.

Query i has position i + q_offset, key j position j. A mask says for single pairs what it allows (`allows`), and may say
of whole tiles that they are empty or full (`kinds`) or equal (`labels`): so that neither is computed.
"""

from attnarray.masks.constraints import LARGEST_POSITION as LARGEST_POSITION
from attnarray.masks.constraints import POSITION as POSITION
from attnarray.masks.constraints import Constraints as Constraints
from attnarray.masks.constraints import band as band
from attnarray.masks.constraints import position as position
from attnarray.masks.constraints import smaller as smaller
from attnarray.masks.constraints import within as within
from attnarray.masks.elementary import Causal as Causal
from attnarray.masks.elementary import Dense as Dense
from attnarray.masks.elementary import Documents as Documents
from attnarray.masks.elementary import Padding as Padding
from attnarray.masks.elementary import Window as Window
from attnarray.masks.mask import Complement as Complement
from attnarray.masks.mask import Intersection as Intersection
from attnarray.masks.mask import Mask as Mask
from attnarray.masks.mask import Union as Union
from attnarray.masks.mask import to_constraints as to_constraints
from attnarray.masks.patterns import Blocks as Blocks
from attnarray.masks.patterns import Global as Global
from attnarray.masks.patterns import Predicate as Predicate
from attnarray.masks.patterns import Prefix as Prefix
from attnarray.masks.patterns import Strided as Strided
from attnarray.masks.patterns import Tree as Tree
from attnarray.masks.random_blocks import RandomBlocks as RandomBlocks

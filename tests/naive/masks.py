"""What masks allow, pair by pair."""

import numpy as np


def dense(mask, shape, offsets):
    """The mask (B, H, T, S), for the position of the first query of each batch."""
    found = np.zeros(shape, bool)
    for b, h, i, j in np.ndindex(shape):
        found[b, h, i, j] = _allows(mask, b, h, i, j, i + int(offsets[b]))
    return found


def _allows(mask, b, h, i, j, q):
    """Whether query i at position q of batch b and head h may attend to key j."""
    return bool(_RULES[type(mask).__name__](mask, b, h, i, j, q))


def _of_batch(value, b):
    value = np.asarray(value)
    return value if value.ndim == 0 else value.reshape(-1)[b]


def _window(mask, b, h, i, j, q):
    return (mask.left is None or j >= q - mask.left) and (mask.right is None or j <= q + mask.right)


def _global(mask, b, h, i, j, q):
    if np.ndim(mask.tokens) == 0:
        return q < mask.tokens or j < mask.tokens
    return q in list(mask.tokens) or j in list(mask.tokens)


def _blocks(mask, b, h, i, j, q):
    table = np.asarray(mask.table)
    table = table.reshape((1,) * (4 - table.ndim) + table.shape)
    row, column = q // mask.size[0], j // mask.size[1]
    return table[b % table.shape[0], h % table.shape[1], row, column]


def _tree(mask, b, h, i, j, q):
    trees = np.asarray(mask.parents).reshape(-1, np.shape(mask.parents)[-1])
    parents = trees[b % len(trees)]
    if j < mask.start:
        return q >= mask.start or j <= q
    node = q - mask.start
    while 0 <= node < len(parents):
        if node == j - mask.start:
            return True
        node = int(parents[node])
    return False


_RULES = {
    "Causal": lambda mask, b, h, i, j, q: j <= q + mask.offset,
    "Window": _window,
    "Padding": lambda mask, b, h, i, j, q: j < _of_batch(mask.lengths, b),
    "Prefix": lambda mask, b, h, i, j, q: j < _of_batch(mask.length, b),
    "Global": _global,
    "Strided": lambda mask, b, h, i, j, q: (q - j) % mask.stride == 0,
    "Blocks": _blocks,
    "Tree": _tree,
    "Predicate": lambda mask, b, h, i, j, q: mask.allowed(b, h, q, j),
    "Intersection": lambda mask, *pair: all(_allows(part, *pair) for part in mask.masks),
    "Union": lambda mask, *pair: any(_allows(part, *pair) for part in mask.masks),
    "Complement": lambda mask, *pair: not _allows(mask.mask, *pair),
}

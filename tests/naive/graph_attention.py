"""Graph attention by loops over nodes and edges in float64, to compare the library with."""

import math

import numpy as np


def graph_attention(
    query, key, value, score_vector, edges, edge_features=None, *, score="gatv2", negative_slope=0.2, edge_mask=None,
    dropout_p=0.0, dropout_mask=None,
):  # fmt: skip
    """The sum over the edges of each node of weight times value, one batch, node and head after the other."""
    *batch, nodes, heads, _ = query.shape
    count = edges.shape[1]
    out = np.zeros((*batch, nodes, heads, value.shape[-1]))
    exists = np.broadcast_to(True if edge_mask is None else edge_mask, (*batch, count))
    kept = np.broadcast_to(True if dropout_mask is None else dropout_mask, (*batch, count, heads))
    for index in np.ndindex(*batch, nodes, heads):
        *b, node, h = index
        found = [e for e in range(count) if edges[1, e] == node and exists[(*b, e)]]
        scores = []
        for e in found:
            edge_feature = None if edge_features is None else edge_features[(*b, e, h)]
            source_key = key[(*b, edges[0, e], h)]
            scores.append(scored(query[index], source_key, edge_feature, score_vector[h], score, negative_slope))
        total = sum(math.exp(number) for number in scores)
        for e, number in zip(found, scores, strict=True):
            if kept[(*b, e, h)]:
                out[index] += math.exp(number) / total / (1 - dropout_p) * value[(*b, edges[0, e], h)]
    return out


def scored(q, k, f, a, score, slope):
    """The score of one edge and head."""
    if score == "gatv2":
        hidden = q + k if f is None else q + k + f
        return sum(a[c] * leaky(hidden[c], slope) for c in range(len(a)))
    features = np.concatenate([q, k] if f is None else [q, k, f])
    return leaky(sum(a[c] * features[c] for c in range(len(a))), slope)


def leaky(x, slope):
    return x if x > 0 else slope * x

"""Linear attention as a recurrence over single steps in float64."""

import math

import numpy as np


def linear_attention(
    query, key, value, decay=None, beta=None, rule="linear", scale=None, initial_state=None, normalize=False,
    feature_map=None, chunk_size=64, lengths=None, layout="BHTD",
):  # fmt: skip
    """The outputs and the last state, for any number of batch axes, with or without heads."""
    heads = query.ndim > 3 or layout == "BTHD"
    arrays = {"query": query, "key": key, "value": value, "decay": decay, "beta": beta}
    for name, array in arrays.items():
        if array is not None and layout == "BTHD":
            arrays[name] = np.moveaxis(array, query.ndim - 3, query.ndim - 2)
        if arrays[name] is not None and not heads:
            arrays[name] = np.expand_dims(arrays[name], query.ndim - 2)
    query, key, value, decay, beta = arrays.values()
    batch = query.shape[:-3]
    *_, H, T, Dk = query.shape
    Hkv = key.shape[-3]
    if scale is None:
        scale = 1.0 if feature_map is not None else 1.0 / math.sqrt(Dk)
    out, states = np.zeros((*batch, H, T, value.shape[-1])), {}
    lengths = np.broadcast_to(T if lengths is None else lengths, batch)
    for b in np.ndindex(*batch):
        for h in range(Hkv):
            S = None if initial_state is None else initial_state[b][h] if heads else initial_state[b]
            for t in range(T):
                k, v = _map(feature_map, "key", key[b][h, t], h), value[b][h, t]
                v = np.append(v, 1.0) if normalize else v
                S = np.zeros((len(k), len(v))) if S is None else np.array(S, dtype=np.float64)
                if t >= lengths[b]:
                    continue
                if decay is not None:
                    S *= np.exp(np.broadcast_to(decay[b][h, t], len(k)))[:, None]
                u = v if beta is None else beta[b][h, t] * (v - S.T @ k)
                S += np.outer(k, u)
                for g in range(h * (H // Hkv), (h + 1) * (H // Hkv)):
                    o = S.T @ _map(feature_map, "query", query[b][g, t], g)
                    out[b][g, t] = (o[:-1] / o[-1] if o[-1] else 0.0 * o[:-1]) if normalize else scale * o
            states[(*b, h)] = S
    state = np.stack([states[index] for index in np.ndindex(*batch, Hkv)])
    state = state.reshape(*batch, Hkv, *state.shape[1:])
    if not heads:
        return out[..., 0, :, :], state[..., 0, :, :]
    return np.moveaxis(out, -3, -2) if layout == "BTHD" else out, state


def _map(name, side, x, head):
    """The features of one vector."""
    if name is None:
        return x
    if hasattr(name, "projection"):
        y = x / len(x) ** 0.25
        return np.array([math.exp(w @ y - y @ y / 2) for w in name.projection]) / math.sqrt(len(name.projection))
    if hasattr(name, "query_weight"):
        y = (name.query_weight if side == "query" else name.key_weight)[head] @ x
        return np.append(np.exp(y) / np.exp(y).sum(), np.exp(-y) / np.exp(-y).sum())
    if name == "softmax":
        return np.exp(x) / np.exp(x).sum()
    one = {"elu+1": lambda a: a + 1 if a > 0 else math.exp(a), "relu": lambda a: max(a, 0.0),
           "squared": lambda a: a * a, "exp": math.exp}[name]  # fmt: skip
    return np.array([one(a) for a in x])

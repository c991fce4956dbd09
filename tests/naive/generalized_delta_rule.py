"""The generalized delta rule as a recurrence over single steps in float64."""

import numpy as np


def generalized_delta_rule(
    query, key, value, a, b, decay=None, scale=1.0, initial_state=None, chunk_size=64, lengths=None, layout="BHTD"
):
    """The outputs and the last state, for any number of batch axes, with or without heads."""
    heads = query.ndim > 3 or layout == "BTHD"
    arrays = [query, key, value, a, b, decay]
    for n, array in enumerate(arrays):
        if array is not None and layout == "BTHD":
            arrays[n] = np.moveaxis(array, query.ndim - 3, query.ndim - 2)
        if array is not None and not heads:
            arrays[n] = np.expand_dims(array, query.ndim - 2)
    query, key, value, a, b, decay = arrays
    *batch, H, T, Dk = query.shape
    Hkv, Dv = key.shape[-3], value.shape[-1]
    out, state = np.zeros((*batch, H, T, Dv)), np.zeros((*batch, Hkv, Dk, Dv))
    if initial_state is not None:
        state += initial_state if heads else initial_state[..., None, :, :]
    lengths = np.broadcast_to(T if lengths is None else lengths, batch)
    for index in np.ndindex(*batch, Hkv):
        *outer, h = index
        S = state[index]
        for t in range(lengths[tuple(outer)]):
            factor = 1.0 if decay is None else np.exp(np.broadcast_to(decay[index][t], Dk))[:, None]
            S = factor * S + np.outer(b[index][t], S.T @ a[index][t]) + np.outer(key[index][t], value[index][t])
            for g in range(h * (H // Hkv), (h + 1) * (H // Hkv)):
                out[(*outer, g, t)] = scale * (S.T @ query[(*outer, g, t)])
        state[index] = S
    if not heads:
        return out[..., 0, :, :], state[..., 0, :, :]
    return np.moveaxis(out, -3, -2) if layout == "BTHD" else out, state

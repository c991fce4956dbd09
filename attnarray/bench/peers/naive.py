"""Attention in plain NumPy: all scores at once, a softmax, and its gradient by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnarray.backend import asarray, creation_namespace, to_numpy, use_backend
from attnarray.bench.peers.peer import Call, Peer, Problem, Unsupported


class Naive:
    """One problem; `forward` keeps the weights for `backward`."""

    def __init__(self, problem: Problem) -> None:
        self.xp = creation_namespace(problem.backend)
        options, groups = problem.case.options, problem.groups
        with use_backend(problem.backend):
            # NumPy's matrix product of 16-bit floats is slow: compute in float32.
            narrow = problem.case.dtype in ("float16", "bfloat16")
            arrays = {
                name: asarray(array, "float32" if narrow and array.dtype.name == problem.case.dtype else None)
                for name, array in problem.arrays.items()
            }
            self.mask = None if problem.mask is None else asarray(problem.mask)
            self.dout = None if problem.dout is None else asarray(problem.dout, "float32" if narrow else None)
        self.dtype = problem.arrays["query"].dtype
        self.query, self.bias = arrays["query"], arrays.get("bias")
        self.key, self.value = (self.xp.repeat(arrays[name], groups, axis=1) for name in ("key", "value"))
        self.groups = groups
        self.scale = options.get("scale") or 1 / math.sqrt(self.query.shape[-1])
        self.softcap, self.p = options.get("softcap"), options.get("dropout_p", 0.0)

    def forward(self) -> tuple[Any, Any]:
        xp = self.xp
        scores = self.query @ self.key.swapaxes(-1, -2) * self.scale  # (B, H, T, S)
        bounded = scores if self.softcap is None else self.softcap * xp.tanh(scores / self.softcap)
        logits = bounded if self.bias is None else bounded + self.bias
        logits = logits if self.mask is None else xp.where(self.mask, logits, -xp.inf)
        weights = xp.exp(logits - logits.max(axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
        keep = None
        if self.p:
            keep = (xp.random.random(weights.shape) >= self.p).astype(weights.dtype) / (1 - self.p)
        dropped = weights if keep is None else weights * keep
        return dropped @ self.value, (bounded, weights, keep, dropped)

    def backward(self, saved: Any) -> dict[str, Any]:
        bounded, weights, keep, dropped = saved
        dvalue = dropped.swapaxes(-1, -2) @ self.dout
        dweights = self.dout @ self.value.swapaxes(-1, -2)
        dweights = dweights if keep is None else dweights * keep
        dlogits = weights * (dweights - (weights * dweights).sum(axis=-1, keepdims=True))
        slope = 1 if self.softcap is None else 1 - (bounded / self.softcap) ** 2
        dscores = dlogits * slope * self.scale
        grads = {
            "query": dscores @ self.key,
            "key": self._grouped(dscores.swapaxes(-1, -2) @ self.query),
            "value": self._grouped(dvalue),
        }
        if self.bias is not None:
            grads["bias"] = dlogits.sum(axis=0)  # over the batch, which the bias (H, T, S) does not have
        return grads

    def _grouped(self, gradient: Any) -> Any:
        """The sum over the query heads of a group: (B, Hkv, S, D)."""
        b, h, s, d = gradient.shape
        return gradient.reshape(b, h // self.groups, self.groups, s, d).sum(axis=2)

    def named(self, result: Any) -> dict[str, np.ndarray]:
        out, grads = result
        outs = {} if out is None else {"out": out}
        return {name: to_numpy(array).astype(self.dtype) for name, array in {**outs, **grads}.items()}


def prepare(problem: Problem) -> Call:
    """The forward, the backward from weights kept before, or both."""
    if not problem.is_attention:
        raise Unsupported("written down for attention only")
    problem.refuse("the naive code", "sinks")
    naive = Naive(problem)
    if problem.case.direction == "forward":
        return Call(lambda: (naive.forward()[0], {}), naive.named)
    if problem.case.direction == "backward":
        saved = naive.forward()[1]
        return Call(lambda: (None, naive.backward(saved)), naive.named)

    def both() -> Any:
        out, saved = naive.forward()
        return out, naive.backward(saved)

    return Call(both, naive.named)


PEER = Peer("naive", "NumPy as one would write it down", prepare, backends=("numpy", "cupy"))

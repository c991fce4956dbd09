"""Learned biases of the distance from query to key, as score modifiers of `attend`: KERPLE and FIRE."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from attnarray import checks
from attnarray.attention.blocks import join, ranges, total_gradients
from attnarray.attention.compiled_modifiers import compiled_modifier
from attnarray.backend import Array, namespace_of


@compiled_modifier
class KERPLE(NamedTuple):
    r"""A score modifier: a bias that falls with the distance by a learned kernel of each head.

    .. math::
        s_{ij} - r_1 \log(1 + r_2 |i - j|) \quad \text{("log")}, \qquad
        s_{ij} - r_1 |i - j|^{r_2} \quad \text{("power")}

    `alibi` is the latter with r_2 = 1. It is a `compiled_modifier`.

    Parameters
    ----------
    r1, r2 : (H,)
        Above 0; with "power" r_2 is at most 2.
    kind : {"log", "power"}
        The paper prefers "log".

    References
    ----------
    Chi et al., "KERPLE: kernelized relative positional embedding for length extrapolation", 2022, arXiv:2205.09921.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> kerple = aa.KERPLE(np.array([1.0, 0.5]), np.array([0.2, 2.0]))
    >>> out, ctx = aa.attend_fwd(q, k, v, is_causal=True, modifiers=[kerple])
    >>> aa.attend_bwd(out, ctx).modifiers[0].r2.shape
    (2,)
    """

    r1: Any
    r2: Any
    kind: Literal["log", "power"] = "log"

    def check(self, name: str, heads: int, dim: int) -> None:
        """Check the fields."""
        checks.choice(f"{name}.kind", self.kind, ("log", "power"))
        for field in ("r1", "r2"):
            checks.shape(f"{name}.{field}", getattr(self, field), (heads,), "one number for each query head")

    def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score - self.r1[h] * self._kernel(score, h, q_idx, kv_idx)[0]

    def mod_backward(self, dscore: Any, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        r"""The gradients of r, with m the kernel: :math:`dr_1 = -\sum ds\, m, \; dr_2 = -\sum ds\, r_1 m'`."""
        kernel, slope = self._kernel(score, h, q_idx, kv_idx)
        return dscore, KERPLE((h, -dscore * kernel), (h, -dscore * self.r1[h] * slope))

    def _kernel(self, score: Any, h: Any, q_idx: Any, kv_idx: Any) -> tuple[Any, Any]:
        """The kernel of the distance, and its derivative by r_2."""
        xp, r2 = namespace_of(score), self.r2[h]
        distance = xp.astype(abs(q_idx - kv_idx), score.dtype)
        if self.kind == "log":
            return xp.log(1.0 + r2 * distance), distance / (1.0 + r2 * distance)
        log = xp.log(xp.where(distance == 0.0, 1.0, distance))
        power = xp.where(distance == 0.0, 0.0, xp.exp(r2 * log))
        return power, power * log


class FIRE(NamedTuple):
    r"""A score modifier: a bias that a small network computes from the distance, relative to the query's position.

    .. math::
        s_{ij} + b_2 + W_2\, \mathrm{relu}(w_1 x_{ij} + b_1), \qquad
        x_{ij} = \frac{\log(1 + c\, |i - j|)}{\log(1 + c \max(L, i))}

    x is between 0 and 1 for keys up to the query, however long the sequence is.

    Parameters
    ----------
    hidden_weight, hidden_bias : (M,)
        w_1 and b_1; the paper has M = 32.
    out_weight : (H, M)
        W_2.
    out_bias : (H,)
        b_2.
    c, threshold : ()
        c and L, above 0; the paper starts with 0.1 and 512.

    References
    ----------
    Li et al., "Functional interpolation for relative positions improves long context transformers", 2023,
    arXiv:2310.04418.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> w1, w2 = np.random.default_rng(1).standard_normal((2, 32))
    >>> fire = aa.FIRE(w1, np.zeros(32), np.stack([w2, -w2]), np.zeros(2), np.array(0.1), np.array(512.0))
    >>> out, ctx = aa.attend_fwd(q, k, v, is_causal=True, modifiers=[fire])
    >>> aa.attend_bwd(out, ctx).modifiers[0].out_weight.shape
    (2, 32)
    """

    hidden_weight: Any
    hidden_bias: Any
    out_weight: Any
    out_bias: Any
    c: Any
    threshold: Any

    def check(self, name: str, heads: int, dim: int) -> None:
        """Check the fields."""
        width = self.hidden_weight.shape[0] if checks.is_array(self.hidden_weight) and self.hidden_weight.ndim else 0
        shapes = (width,), (width,), (heads, width), (heads,), (), ()
        meaning = f"where M is {width}, the numbers of `{name}.hidden_weight` (M,), and there are {heads} query heads"
        for field, shape in zip(self._fields, shapes, strict=True):
            checks.shape(f"{name}.{field}", getattr(self, field), shape, meaning)

    def apply(self, scores: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        xp, biases = namespace_of(scores), []
        for rows in self._rows(scores):
            x = self._distance(scores, q_idx[:, :, rows, :], kv_idx)[0]
            bias = xp.matmul(self._hidden(x)[1], self.out_weight.mT) + self.out_bias  # (B|1, 1, rows, S, H)
            biases.append(xp.permute_dims(bias[:, 0, ...], (0, 3, 1, 2)))
        return scores + join(biases)

    def backward(
        self, dscores: Array, scores: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array
    ) -> tuple[Array, FIRE]:
        r"""The gradients, with z = w_1 x + b_1, ``a = c |i - j|`` and n = c max(L, i).

        .. math::
            dz = [z > 0] \odot W_2^T ds, \qquad dW_2 = \sum ds\, \mathrm{relu}(z)^T, \qquad dw_1 = \sum x\, dz, \qquad
            dx = w_1 \cdot dz

        .. math::
            dc = \sum \frac{dx}{\log(1 + n)} \Bigl(\frac{a / c}{1 + a} - x \frac{n / c}{1 + n}\Bigr), \qquad
            dL = -\sum_{i < L} dx\, \frac{x}{\log(1 + n)}\, \frac{c}{1 + n}
        """
        xp, found = namespace_of(scores), list[FIRE]()
        for rows in self._rows(scores):
            x, distance, reach, log = self._distance(scores, q_idx[:, :, rows, :], kv_idx)
            z, hidden = self._hidden(x)
            ds = dscores[:, :, rows, :] if x.shape[0] > 1 else xp.sum(dscores[:, :, rows, :], axis=0, keepdims=True)
            ds = xp.permute_dims(ds, (1, 0, 2, 3))  # (H, B|1, rows, S)
            flat = xp.reshape(ds, (ds.shape[0], -1))
            dhidden = xp.reshape(xp.matmul(flat.mT, self.out_weight), hidden.shape)
            dz = xp.where(z > 0, dhidden, 0.0)
            dx = xp.sum(dz * self.hidden_weight, axis=-1)
            c, each = self.c, tuple(range(4))
            dc = dx / log * (distance / (1.0 + c * distance) - x * reach / (1.0 + c * reach))
            dthreshold = xp.where(reach > self.threshold, 0.0, -dx * x / log * c / (1.0 + c * reach))
            found.append(
                FIRE(
                    xp.sum(x[..., None] * dz, axis=each),
                    xp.sum(dz, axis=each),
                    xp.matmul(flat, xp.reshape(hidden, (-1, hidden.shape[-1]))),
                    xp.sum(flat, axis=1),
                    xp.asarray(xp.sum(dc)),
                    xp.asarray(xp.sum(dthreshold)),
                )
            )
        return dscores, total_gradients(found, self)

    def _rows(self, scores: Array) -> Any:
        """Ranges of the queries of a block, so that few numbers of hidden units are held at a time."""
        return ranges(scores.shape[2], scores.shape[3] * self.hidden_weight.shape[0])

    def _distance(self, scores: Array, q_idx: Array, kv_idx: Array) -> tuple[Array, Array, Array, Array]:
        """x (B|1, 1, rows, S), |i - j|, max(L, i) and log(1 + c max(L, i))."""
        xp = namespace_of(scores)
        distance = xp.astype(abs(q_idx - kv_idx), scores.dtype)
        reach = xp.maximum(xp.astype(q_idx, scores.dtype), self.threshold)
        log = xp.log(1.0 + self.c * reach)
        return xp.log(1.0 + self.c * distance) / log, distance, reach, log

    def _hidden(self, x: Array) -> tuple[Array, Array]:
        """w_1 x + b_1 and its positive part (B|1, 1, rows, S, M)."""
        z = x[..., None] * self.hidden_weight + self.hidden_bias
        return z, namespace_of(z).where(z > 0, z, 0.0)

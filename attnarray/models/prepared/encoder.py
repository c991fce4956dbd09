"""The encoder of a Transformer with its parameters, prepared for inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnarray import checks
from attnarray.backend import Array, ArrayT, device_of, namespace_of
from attnarray.dispatch import accelerated
from attnarray.layers.checking import Checked, check_input
from attnarray.layers.initial import Params
from attnarray.masks import Mask
from attnarray.models.prepared.stack import Prepared, Weights, make_stack, rounded

if TYPE_CHECKING:
    from attnarray.models.transformer.encoder import Encoder


@dataclass(frozen=True, eq=False)
class PreparedEncoder(Prepared):
    """An `Encoder` with its parameters, from `Encoder.prepare`: the same results with less work in each call.

    There is no backward. With kernels for NumPy arrays, padding is not computed; a call with a mask or a bias runs as
    that of the model.
    """

    model: Encoder
    tables = embedding_norm = pooler = None

    @property
    def final_norm(self) -> Any:
        """The norm after the last block, for kernels, if there is one."""
        return self.stack.norm_fields(self.params["norm"]) if "norm" in self.params else None

    def __call__(
        self, x: ArrayT, *, attn_mask: Array | Mask | None = None, is_causal: bool = False, kv_lengths: Any = None,
        bias: Array | None = None,
    ) -> ArrayT:  # fmt: skip
        """Return y (*batch, T, dim) of x (*batch, T, dim), as the model does; y is 0 beyond `kv_lengths` (*batch,)."""
        leaf = self.params["blocks"][0]["attention"]["query"]["weight"]
        check_input(self.model, "x", x, ("dim",), leaf)
        checks.flag("is_causal", is_causal)
        if attn_mask is not None or bias is not None:
            options = {"attn_mask": attn_mask, "is_causal": is_causal, "kv_lengths": kv_lengths, "bias": bias}
            return self.model(self.params, x, **options)
        lengths = kv_lengths if kv_lengths is None else _checked_lengths(kv_lengths, x)
        result: ArrayT = encoder_states(x, self, lengths, is_causal)
        return result


def prepare_encoder(model: Encoder, params: Params, weights: Weights | None) -> PreparedEncoder:
    """See `Encoder.prepare`."""
    params, halves = rounded(params, weights)
    leaf = params["blocks"][0]["attention"]["query"]["weight"]
    return PreparedEncoder(model, params, make_stack(model, leaf, halves))


@accelerated
def encoder_states(x: Array, prepared: PreparedEncoder, lengths: Array | None, is_causal: bool) -> Any:
    """The output (*batch, T, dim) of the last block, 0 beyond `lengths` (*batch,)."""
    options: Any = {"kv_lengths": lengths, "is_causal": is_causal}
    y = prepared.model(Checked(prepared.params), x, **options)
    if lengths is None:
        return y
    xp = namespace_of(y)
    exists = xp.arange(x.shape[-2], dtype=lengths.dtype, device=device_of(lengths)) < lengths[..., None]
    return xp.where(exists[..., None], y, xp.zeros_like(y))


def _checked_lengths(lengths: Any, x: Array) -> Array:
    """Lengths (*batch,), from 0 to T, in the library of x."""
    array: Any = checks.same_device("kv_lengths", checks.integers("kv_lengths", lengths), "x", x)
    xp, batch = namespace_of(x), tuple(x.shape[:-2])
    if isinstance(array, int) or array.ndim == 0:
        array = xp.full(batch, int(array), device=device_of(x))
    checks.shape("kv_lengths", array, batch, "the number of keys that exist in each batch")
    return checks.within("kv_lengths", array, 0, x.shape[-2], "the number of keys that exist in each batch")

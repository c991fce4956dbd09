"""Gemma 1 to 3 (text): zero-centered norms, scaled embeddings, and from 2 on sandwich norms and alternating windows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from attnarray import checks
from attnarray.checkpoints.config import PUBLISHED, Config, given, only, positive
from attnarray.checkpoints.names import Family, Names
from attnarray.models.gpt.families.llama import BLOCK, ENDS, base_config, base_fields, heads, llama_names, windows
from attnarray.models.gpt.families.rope import read_rotary, write_rotary
from attnarray.models.gpt.families.tensors import decoder_names

SANDWICH = {
    **BLOCK,
    "post_attention_layernorm": "attention_branch_norm",
    "pre_feedforward_layernorm": "feed_forward_norm",
    "post_feedforward_layernorm": "feed_forward_branch_norm",
}
TANH = "gelu_pytorch_tanh"


def gemma_fields(config: Config, names: Iterable[str], activation: str = "hidden_act") -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    only(config, use_bidirectional_attention=(False, None))
    fields = base_fields(config, names, tied=True, activation=activation, act=TANH, head_dim=256)
    bias = checks.flag("attention_bias", given(config, "attention_bias", False))
    own = {"norm": "rms_zero_centered", "embedding_scale": math.sqrt(fields["dim"])}
    return {**fields, **own, "qkv_bias": bias, "out_bias": bias}


def gemma2_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    fields = gemma_fields(config, names, "hidden_activation")
    n = fields["num_layers"]
    types = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(n)]
    return {**fields, **_scores(config, 50.0, 30.0), "branch_norm": True, "windows": windows(config, n, types, 4096)}


def gemma3_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json: rotations of sliding layers are local ones."""
    nested: Any = config.get("rope_parameters") or {}
    local, whole = nested.get("sliding_attention"), nested.get("full_attention")
    plain = {name: entry for name, entry in config.items() if name not in ("rope_parameters", "rope_scaling")}
    fields = gemma_fields({**plain, "rope_theta": None}, names, "hidden_activation")
    n, every = (
        fields["num_layers"],
        given(config, "sliding_window_pattern", given(config, "_sliding_window_pattern", 6)),
    )
    types = given(
        config, "layer_types", [f"{'sliding' if (layer + 1) % every else 'full'}_attention" for layer in range(n)]
    )
    width = fields["head_dim"] or fields["dim"] // fields["num_heads"]
    theta = given(config, "rope_local_base_freq", 10_000.0)
    near = read_rotary({"rope_parameters": local} if local else {"rope_theta": theta}, width)
    older = {name: config.get(name) for name in ("rope_theta", "rope_scaling")}
    far = read_rotary({"rope_parameters": whole} if whole else older, width, base=1_000_000.0)
    return {
        **fields,
        **_scores(config, None, None),
        "branch_norm": True,
        "qk_norm": "head",
        "windows": windows(config, n, types, 4096),
        "rotary": tuple(near if kind == "sliding_attention" else far for kind in types),
    }


def _scores(config: Config, softcap: float | None, logits_softcap: float | None) -> dict[str, Any]:
    """The scale of scores, and the softcaps, with the defaults of a family."""
    named = {
        "softcap": ("attn_logit_softcapping", softcap),
        "logits_softcap": ("final_logit_softcapping", logits_softcap),
    }
    caps = {ours: config.get(theirs, default) for ours, (theirs, default) in named.items()}
    found = {ours: None if cap is None else checks.positive(named[ours][0], cap) for ours, cap in caps.items()}
    return {**found, "scale": positive(config, "query_pre_attn_scalar", 256.0) ** -0.5}


def _config(model: Any, family: Family) -> Config:
    config = base_config(model, family.model_type, family.architectures[0])
    config["hidden_activation"] = PUBLISHED[model.activation]
    if model.activation == "gelu_tanh":
        config["hidden_act"] = config["hidden_activation"] = TANH
    if model.scale is not None:
        width = model.scale**-2
        config["query_pre_attn_scalar"] = round(width) if math.isclose(width, round(width)) else width
    config |= {"attn_logit_softcapping": model.softcap, "final_logit_softcapping": model.logits_softcap}
    if family is not GEMMA3 or not isinstance(model.rotary, tuple):
        return config
    pairs = [
        (model.windows[n % len(model.windows)], model.rotary[n % len(model.rotary)]) for n in range(model.num_layers)
    ]
    near, far = (next((one for window, one in pairs if (window is None) is full), None) for full in (False, True))
    named = {"sliding_attention": near, "full_attention": far}
    nested = {
        kind: write_rotary(one or near or far, config["head_dim"])["rope_parameters"] for kind, one in named.items()
    }
    return {**config, "rope_parameters": nested, "rope_theta": None, "rope_scaling": None}


def gemma2_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    return decoder_names(model, ENDS, SANDWICH)


GEMMA: Family = Family("gemma", heads("Gemma"), gemma_fields, lambda model: _config(model, GEMMA), llama_names)
GEMMA2: Family = Family("gemma2", heads("Gemma2"), gemma2_fields, lambda model: _config(model, GEMMA2), gemma2_names)
GEMMA3: Family = Family(
    "gemma3_text", heads("Gemma3"), gemma3_fields, lambda model: _config(model, GEMMA3), gemma2_names
)

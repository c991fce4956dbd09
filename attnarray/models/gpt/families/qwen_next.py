"""Qwen3-Next: gated delta rules in three of four layers, gated attention in the others, and experts in all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from attnarray import checks
from attnarray.checkpoints.config import Config, Unsupported, given, only, size
from attnarray.checkpoints.names import Family, Names, Tensor
from attnarray.layers.linear_attention import LinearAttention
from attnarray.models.gpt.families.llama import BLOCK, ENDS, base_config, base_fields, biases, heads
from attnarray.models.gpt.families.rope import read_rotary
from attnarray.models.gpt.families.tensors import Table, decoder_names

KINDS = ("linear_attention", "full_attention")
# Option of the linear layers -> entry of config.json, and its default.
LINEAR = {
    "num_heads": ("linear_num_key_heads", 16),
    "num_value_heads": ("linear_num_value_heads", 32),
    "key_dim": ("linear_key_head_dim", 128),
    "value_dim": ("linear_value_head_dim", 128),
    "conv_width": ("linear_conv_kernel_dim", 4),
}
EXPERTS = {
    "num_experts": ("num_experts", 512),
    "experts_per_token": ("num_experts_per_tok", 10),
    "hidden_dim": ("moe_intermediate_size", 512),
    "shared_expert_dim": ("shared_expert_intermediate_size", 512),
}
FEED_FORWARD: Table = {
    "mlp.gate": "feed_forward.router",
    "mlp.experts.{}.gate_proj": "feed_forward.experts.{}.hidden",
    "mlp.experts.{}.up_proj": "feed_forward.experts.{}.gate",
    "mlp.experts.{}.down_proj": "feed_forward.experts.{}.out",
    "mlp.shared_expert.gate_proj": "feed_forward.shared.hidden",
    "mlp.shared_expert.up_proj": "feed_forward.shared.gate",
    "mlp.shared_expert.down_proj": "feed_forward.shared.out",
    "mlp.shared_expert_gate": "feed_forward.shared_gate",
}
FULL: Table = {**{name: path for name, path in BLOCK.items() if name != "self_attn.q_proj"}, **FEED_FORWARD}
DELTA: Table = {
    **{name: path for name, path in FULL.items() if not name.startswith("self_attn.")},
    "linear_attn.norm": "attention.norm",
    "linear_attn.out_proj": "attention.out",
}
CONVS = ("query_conv", "key_conv", "value_conv")


def qwen3_next_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    only(config, decoder_sparse_step=(1, None), mlp_only_layers=([], None), norm_topk_prob=(True, None))
    fields = base_fields(config, names, head_dim=256)
    width = fields["head_dim"] or fields["dim"] // fields["num_heads"]
    fields["rotary"] = read_rotary(config, width, partial=0.25)
    own = {"norm": "rms_zero_centered", "qk_norm": "head", "attention_gate": "element"}
    sizes = {name: size({entry: default, **config}, entry) for name, (entry, default) in EXPERTS.items()}
    mixers = _mixers(config, fields)
    return {**fields, **biases({**config, "mlp_bias": False}), **own, **sizes, "mixers": mixers}


def _mixers(config: Config, fields: dict[str, Any]) -> tuple[Any, ...]:
    """What mixes the positions in each layer, by "layer_types" or "full_attention_interval"."""
    n = fields["num_layers"]
    every = size({"full_attention_interval": 4, **config}, "full_attention_interval")
    types = given(config, "layer_types", [KINDS[(layer + 1) % every == 0] for layer in range(n)])
    if not isinstance(types, list) or len(types) != n or not set(types) <= set(KINDS):
        raise Unsupported(f"has layer_types = {checks.shown(types)}, expected one of {sorted(KINDS)} for each layer")
    if KINDS[0] not in types:
        return ("attention",)
    only(config, hidden_act=("silu", None))
    sizes: Any = {name: size({entry: default, **config}, entry) for name, (entry, default) in LINEAR.items()}
    if sizes["num_value_heads"] == sizes["num_heads"]:
        del sizes["num_value_heads"]
    for name in ("key_dim", "value_dim"):
        if sizes[name] * sizes["num_heads"] == fields["dim"]:
            del sizes[name]  # the default
    linear = LinearAttention.gated_delta_net(fields["dim"], norm_eps=fields["eps"], **sizes)
    return tuple(linear if kind == KINDS[0] else "attention" for kind in types)


def qwen3_next_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    config = base_config(model, "qwen3_next", QWEN3_NEXT.architectures[0])
    layers = _linear_layers(model)
    linear = next((layer for layer in layers if layer is not None), None)
    if linear is not None:
        width = linear.dim // linear.num_heads
        defaults = {"num_value_heads": linear.num_heads, "key_dim": width, "value_dim": width}
        for name, (entry, _) in LINEAR.items():
            config[entry] = getattr(linear, name) or defaults.get(name)
    for name, (entry, _) in EXPERTS.items():
        config[entry] = getattr(model, name)
    config["moe_intermediate_size"] = config["intermediate_size"]
    return {
        **config, "layer_types": [KINDS[layer is None] for layer in layers], "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip


def qwen3_next_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    layers, shapes = _linear_layers(model), model.shapes()
    tensors: list[Tensor] = []

    def add(name: str, n: int, parts: tuple[str, ...], groups: int = 1, one_channel: bool = False) -> None:
        paths = tuple(f"blocks.{n}.attention.{part}" for part in parts)
        tensors.append(Tensor(f"layers.{n}.{name}", paths, False, groups, one_channel))

    for n, layer in enumerate(layers):
        has = shapes["blocks"][n]["attention"]
        if layer is None:
            parts = [part for part in ("query", "gate") if part in has]
            for leaf in has["query"]:
                add(f"self_attn.q_proj.{leaf}", n, tuple(f"{part}.{leaf}" for part in parts), model.num_heads)
            continue
        for name, parts in (("qkvz", ["query", "key", "value", "gate"]), ("ba", ["beta", "decay"])):
            weights = tuple(f"{part}.weight" for part in parts if part in has)
            add(f"linear_attn.in_proj_{name}.weight", n, weights, layer.num_heads)
        if "query_conv" in has:
            add("linear_attn.conv1d.weight", n, CONVS, one_channel=True)
        if "decay_rate" in has:
            add("linear_attn.A_log", n, ("decay_rate",))
            add("linear_attn.dt_bias", n, ("decay.bias",))
    found = decoder_names(model, ENDS, [FULL if layer is None else DELTA for layer in layers])
    ignored = (*found.ignored, r"mtp\..+")  # heads that predict several tokens, which transformers does not read either
    return dataclasses.replace(found, tensors=(*found.tensors, *tensors), ignored=ignored)


def _linear_layers(model: Any) -> list[LinearAttention | None]:
    """The linear layer of each block, None of blocks with attention."""
    parts = [block.parts()["attention"] for block in model.body.blocks]
    return [part if isinstance(part, LinearAttention) else None for part in parts]


QWEN3_NEXT: Family = Family("qwen3_next", heads("Qwen3Next"), qwen3_next_fields, qwen3_next_config, qwen3_next_names)

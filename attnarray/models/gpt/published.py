"""Checkpoints of `GPT`, with the architecture of GPT-2 or of LLaMA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnarray.checkpoints.config import Config, check_kind
from attnarray.checkpoints.names import Names, Pretrained, Tensor
from attnarray.models.gpt.gpt2_config import ARCHITECTURES as GPT2_ARCHITECTURES
from attnarray.models.gpt.gpt2_config import gpt2_config, gpt2_fields
from attnarray.models.gpt.llama_config import ARCHITECTURES as LLAMA_ARCHITECTURES
from attnarray.models.gpt.llama_config import llama_config, llama_fields
from attnarray.models.gpt.names import gpt2_names, llama_names
from attnarray.tree import format_path

HEAD = "lm_head.weight"
FIELDS = {"gpt2": gpt2_fields, "llama": llama_fields}
KINDS = {"gpt2": GPT2_ARCHITECTURES, "llama": LLAMA_ARCHITECTURES}


def _is_llama(model: Any) -> bool:
    return bool(model.positions == "rotary")


def gpt_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    llama = _is_llama(model)
    parts: dict[tuple[str, bool], dict[int, str]] = {}
    for path, stored in (llama_names if llama else gpt2_names)(model.num_layers).items():
        parts.setdefault((stored.name, stored.transposed), {})[stored.part] = format_path(path)
    tensors = [
        Tensor(name, tuple(paths[n] for n in sorted(paths)), transposed) for (name, transposed), paths in parts.items()
    ]
    tensors += [] if model.tie_embeddings else [Tensor(HEAD, ("logits.weight",))]
    copies = {HEAD: "embed_tokens.weight" if llama else "wte.weight"} if model.tie_embeddings else {}
    ignored = (r"h\.\d+\.attn\.(masked_)?bias", r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
    return Names(tuple(tensors), "model." if llama else "transformer.", ("lm_head.",), (), copies, ignored)


def gpt_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    return FIELDS[check_kind(config, KINDS, "gpt2", "GPT")](config, names)


def gpt_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    return llama_config(model) if _is_llama(model) else gpt2_config(model)


PRETRAINED = Pretrained(gpt_fields, gpt_config, gpt_names)

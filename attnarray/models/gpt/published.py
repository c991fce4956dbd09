"""Checkpoints of `GPT`, with the architecture of GPT-2 or of LLaMA."""

from __future__ import annotations

from typing import Any

from attnarray.checkpoints.names import Family, Names, Tensor
from attnarray.models.gpt.gpt2_config import ARCHITECTURES as GPT2_ARCHITECTURES
from attnarray.models.gpt.gpt2_config import gpt2_config, gpt2_fields
from attnarray.models.gpt.llama_config import ARCHITECTURES as LLAMA_ARCHITECTURES
from attnarray.models.gpt.llama_config import llama_config, llama_fields
from attnarray.models.gpt.names import gpt2_names, llama_names
from attnarray.tree import format_path

HEAD = "lm_head.weight"


def gpt_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    llama = model.positions == "rotary"
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


PRETRAINED = (
    Family("gpt2", GPT2_ARCHITECTURES, gpt2_fields, gpt2_config, gpt_names),
    Family("llama", LLAMA_ARCHITECTURES, llama_fields, llama_config, gpt_names),
)

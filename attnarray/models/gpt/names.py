"""Names of the parameters of `GPT` in checkpoints of GPT-2 and LLaMA of Hugging Face transformers."""

from __future__ import annotations

from typing import NamedTuple

Path = tuple[str | int, ...]


class Stored(NamedTuple):
    """One parameter in a checkpoint.

    `name` is that of its tensor, which is (inputs, outputs) if `transposed`. As (outputs, inputs), the tensor is the
    concatenation of `parts` parameters of equal shape, of which this is number `part`.
    """

    name: str
    transposed: bool = False
    part: int = 0
    parts: int = 1


# Of a block: path -> module below "h.n" or "layers.n", and how its weight is stored.
GPT2_BLOCK: dict[Path, Stored] = {
    ("attention", "query"): Stored("attn.c_attn", True, 0, 3),
    ("attention", "key"): Stored("attn.c_attn", True, 1, 3),
    ("attention", "value"): Stored("attn.c_attn", True, 2, 3),
    ("attention", "out"): Stored("attn.c_proj", True),
    ("attention_norm",): Stored("ln_1"),
    ("feed_forward", "hidden"): Stored("mlp.c_fc", True),
    ("feed_forward", "out"): Stored("mlp.c_proj", True),
    ("feed_forward_norm",): Stored("ln_2"),
}
GPT2_ENDS: dict[Path, Stored] = {
    ("token", "weight"): Stored("wte.weight"),
    ("position", "weight"): Stored("wpe.weight"),
    ("norm", "weight"): Stored("ln_f.weight"),
    ("norm", "bias"): Stored("ln_f.bias"),
}
LLAMA_BLOCK: dict[Path, Stored] = {
    ("attention", "query"): Stored("self_attn.q_proj"),
    ("attention", "key"): Stored("self_attn.k_proj"),
    ("attention", "value"): Stored("self_attn.v_proj"),
    ("attention", "out"): Stored("self_attn.o_proj"),
    ("attention_norm",): Stored("input_layernorm"),
    ("feed_forward", "hidden"): Stored("mlp.gate_proj"),  # its activation is the gate
    ("feed_forward", "gate"): Stored("mlp.up_proj"),
    ("feed_forward", "out"): Stored("mlp.down_proj"),
    ("feed_forward_norm",): Stored("post_attention_layernorm"),
}
LLAMA_ENDS: dict[Path, Stored] = {
    ("token", "weight"): Stored("embed_tokens.weight"),
    ("norm", "weight"): Stored("norm.weight"),
}


def gpt2_names(num_layers: int) -> dict[Path, Stored]:
    """Return where each parameter of a `GPT` with the architecture of GPT-2 is stored, by its path.

    Names are those of `GPT2Model`; those of `GPT2LMHeadModel` begin with "transformer.", and its "lm_head.weight" is
    tied to "wte.weight".

    Examples
    --------
    >>> from attnarray.models import gpt2_names
    >>> gpt2_names(12)["blocks", 11, "attention", "key", "weight"]
    Stored(name='h.11.attn.c_attn.weight', transposed=True, part=1, parts=3)
    """
    found = dict(GPT2_ENDS)
    for n in range(num_layers):
        for path, stored in GPT2_BLOCK.items():
            module = f"h.{n}.{stored.name}"
            found["blocks", n, *path, "weight"] = stored._replace(name=f"{module}.weight")
            found["blocks", n, *path, "bias"] = stored._replace(name=f"{module}.bias", transposed=False)
    return found


def llama_names(num_layers: int) -> dict[Path, Stored]:
    """Return the same for a `GPT` with the architecture of LLaMA, with the names of `LlamaModel`.

    Those of `LlamaForCausalLM` begin with "model."; its "lm_head.weight" is "logits.weight" here, or tied to
    "embed_tokens.weight".

    Examples
    --------
    >>> from attnarray.models import llama_names
    >>> llama_names(2)["blocks", 1, "feed_forward", "gate", "weight"].name
    'layers.1.mlp.up_proj.weight'
    """
    found = dict(LLAMA_ENDS)
    for n in range(num_layers):
        for path, stored in LLAMA_BLOCK.items():
            found["blocks", n, *path, "weight"] = stored._replace(name=f"layers.{n}.{stored.name}.weight")
    return found

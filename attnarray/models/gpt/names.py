"""Names of the parameters of `GPT` in checkpoints of GPT-2 and LLaMA of Hugging Face transformers."""

from __future__ import annotations

from typing import NamedTuple

from attnarray.models.gpt.families.gpt2 import GPT2_BLOCK, GPT2_ENDS, TRANSPOSED
from attnarray.models.gpt.families.llama import BLOCK as LLAMA_BLOCK
from attnarray.models.gpt.families.llama import ENDS as LLAMA_ENDS
from attnarray.models.gpt.families.tensors import Table

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


def _stored(table: Table, layer: str = "", transposed: tuple[str, ...] = ()) -> dict[Path, Stored]:
    """Where the modules of a table are stored, by path, without the leaves."""
    found: dict[Path, Stored] = {}
    for module, given in table.items():
        paths = (given,) if isinstance(given, str) else given
        for part, path in enumerate(paths):
            found[tuple(path.split("."))] = Stored(layer + module, module in transposed, part, len(paths))
    return found


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
    found: dict[Path, Stored] = {}
    modules = dict(_stored(GPT2_ENDS))
    for n in range(num_layers):
        modules |= {("blocks", n, *path): one for path, one in _stored(GPT2_BLOCK, f"h.{n}.", TRANSPOSED).items()}
    for path, stored in modules.items():
        found[*path, "weight"] = stored._replace(name=f"{stored.name}.weight")
        if path not in (("token",), ("position",)):
            found[*path, "bias"] = stored._replace(name=f"{stored.name}.bias", transposed=False)
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
    modules = dict(_stored(LLAMA_ENDS))
    for n in range(num_layers):
        modules |= {("blocks", n, *path): one for path, one in _stored(LLAMA_BLOCK, f"layers.{n}.").items()}
    normed = ("query_norm", "key_norm")  # of other families
    return {
        (*path, "weight"): stored._replace(name=f"{stored.name}.weight")
        for path, stored in modules.items()
        if path[-1] not in normed
    }

"""Make decoders/*.npz: every family of decoders, from transformers in float64.

    python tests/references/make_decoders.py

It needs torch, transformers and safetensors, and writes for each model of tests/support/decoders.py its config.json,
the names and shapes of its tensors, whose values are those of `values`, logits of tokens with and without left
padding, greedy tokens, and the projections of all gradients. What transformers computes in float32 whatever the
weights are is computed in float64 here, and the rounded constant of BLOOM's GELU is the exact one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.decoders import DECODERS, NEW, STARTS, B, T, V, direction, values

torch.float32 = torch.float = torch.float64  # before transformers is imported
torch.Tensor.float = torch.Tensor.double
torch.set_default_dtype(torch.float64)

import transformers  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from transformers.models.bloom import modeling_bloom  # noqa: E402

modeling_bloom.BloomGelu.forward = lambda _, x: torch.nn.functional.gelu(x, approximate="tanh")
OWN_POSITIONS = ("bloom", "mpt", "opt")  # computed from the mask


def make(kind: str, options: dict[str, Any], folder: str) -> Any:
    """A model with the values of its tensors, saved in a folder."""
    config = transformers.AutoConfig.for_model(kind, vocab_size=V, **options)
    config.pad_token_id = None
    own = {"experts_implementation": "eager"} if kind in ("mixtral", "qwen3_next") else {}
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path = Path(folder) / "model.safetensors"
    tensors = {name: values(name, tensor.shape) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(folder, dtype=torch.float64, attn_implementation="eager", pad_token_id=None, **own)
    return model.eval()


def results(kind: str, model: Any, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Logits, and greedy tokens after left-padded prompts; gradients are left in the model."""
    given = torch.from_numpy(tokens)
    mask = torch.tensor([[int(column >= start) for column in range(T)] for start in STARTS])
    own = {} if kind in OWN_POSITIONS else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    logits, padded = model(given).logits, model(given, attention_mask=mask, **own).logits
    greedy = model.generate(
        given, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    (logits * torch.from_numpy(direction(logits.shape))).sum().backward()
    found = {"logits": logits, "padded": padded, "greedy": greedy[:, T:]}
    return {name: array.detach().numpy() for name, array in found.items()}


def reference(kind: str, options: dict[str, Any], tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What the file of one model holds."""
    with tempfile.TemporaryDirectory() as folder:
        model = make(kind, options, folder)
        found = results(kind, model, tokens)
        config = json.loads((Path(folder) / "config.json").read_text())
        for parameter in model.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        model.save_pretrained(folder)  # the gradients, by the names of the file
        gradients = load_file(Path(folder) / "model.safetensors")
    shapes = {name: gradients[name].shape for name in sorted(gradients)}
    projections = [np.sum(gradients[name] * direction(shape)) for name, shape in shapes.items()]
    text = json.dumps({"config": config, "shapes": shapes})
    return {**found, "tokens": tokens, "gradients": np.array(projections), "model": np.array(text)}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rng = np.random.default_rng(0)
    folder = Path(__file__).with_name("decoders")
    folder.mkdir(exist_ok=True)
    for name, (kind, options) in DECODERS.items():
        path = folder / f"{name.replace(' ', '_')}.npz"
        np.savez_compressed(path, **reference(kind, options, rng.integers(V, size=(B, T))))
        print(f"{path.name}: {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")

"""Make gpt2.npz: GPT-2 and LLaMA with random weights, hidden states and gradients, from transformers in float64.

Run with transformers 5.23, PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_gpt2.py`.

The models are `GPT2LMHeadModel` and `LlamaForCausalLM`; of the latter the norms and the angles, which it computes in
float32 whatever the weights are, are PyTorch's own in float64. The form of the file is that of sdpa.npz. Options are
those of `attnarray.models.GPT`. Arrays: `tokens` (B, T), `exists` (B, T) with `starts` or `lengths` (B,) where there is
padding, `labels` (B, T) that are -100 where the token before does not exist, the parameters by transformers' names,
their gradients `grad_<name>` of the mean cross-entropy `loss`, `logits`, and `state_<n>`, which are 0 where there is no
token.
"""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from make_sdpa import largest_difference, packed
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32


class Angles(torch.nn.Module):
    """Cosines and sines of positions for heads of D features, for pairs n and n + D / 2."""

    def __init__(self, D):
        super().__init__()
        self.frequencies = 10_000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)

    def forward(self, x, position_ids):
        angles = position_ids[..., None].double() * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class Norm(torch.nn.RMSNorm):
    """Replaces one of transformers'."""

    def __init__(self, of):
        super().__init__(of.weight.shape, eps=of.variance_epsilon)


def in_its_dtype(model):
    """LLaMA without float32 where the weights are float64."""
    model.model.rotary_emb = Angles(model.config.head_dim)
    for layer in model.model.layers:
        layer.input_layernorm = Norm(layer.input_layernorm)
        layer.post_attention_layernorm = Norm(layer.post_attention_layernorm)
    model.model.norm = Norm(model.model.norm)
    return model


class Reference(NamedTuple):
    """One model, by the options of `GPT`, and its batch."""

    options: dict
    starts: tuple = ()
    lengths: tuple = ()
    B: int = 2
    T: int = 7
    family: str = "gpt2"

    def model(self):
        o = {"hidden_dim": None, "num_kv_heads": None, "tie_embeddings": True, **self.options}
        if self.family == "gpt2":
            config = GPT2Config(
                vocab_size=o["vocab_size"], n_positions=o["max_seq_len"], n_embd=o["dim"], n_layer=o["num_layers"],
                n_head=o["num_heads"], n_inner=o["hidden_dim"], attn_implementation="eager", bos_token_id=0,
                eos_token_id=0,
            )  # fmt: skip
            return GPT2LMHeadModel(config)
        config = LlamaConfig(
            vocab_size=o["vocab_size"], hidden_size=o["dim"], intermediate_size=o["hidden_dim"],
            num_hidden_layers=o["num_layers"], num_attention_heads=o["num_heads"],
            num_key_value_heads=o["num_kv_heads"], max_position_embeddings=o["max_seq_len"], rms_norm_eps=o["eps"],
            tie_word_embeddings=o["tie_embeddings"], attn_implementation="sdpa", bos_token_id=0, eos_token_id=0,
            pad_token_id=None,
        )  # fmt: skip
        return in_its_dtype(LlamaForCausalLM(config))

    def arrays(self, rng):
        """Tokens, which of them exist, labels, and weights far from usual initial ones."""
        tokens = rng.integers(self.options["vocab_size"], size=(self.B, self.T))
        places, exists = np.arange(self.T), np.ones((self.B, self.T), bool)
        given = {name: np.array(getattr(self, name)) for name in ("starts", "lengths") if getattr(self, name)}
        if self.starts:
            exists = places >= given["starts"][:, None]
        if self.lengths:
            exists = places < given["lengths"][:, None]
        labels = np.where(exists & np.roll(exists, 1, axis=1), tokens, -100)
        labels[:, 0] = -100
        weights = {}
        for name, parameter in self.model().named_parameters():
            weight = np.round(64 * 0.35 * rng.standard_normal(tuple(parameter.shape))) / 64
            is_norm = any(part in name for part in ("ln_", "norm")) and name.endswith("weight")
            weights[name] = weight + 1 if is_norm else weight
        return {"tokens": tokens, "exists": exists, "labels": labels, **given, **weights}


GPT2 = {"vocab_size": 17, "max_seq_len": 9, "dim": 12, "num_layers": 2, "num_heads": 3}
LLAMA = {
    "vocab_size": 13, "max_seq_len": 16, "dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "hidden_dim": 20, "bias": False, "norm": "rms", "eps": 1e-6, "activation": "silu", "gated": True,
    "positions": "rotary",
}  # fmt: skip
CASES = {
    "GPT-2": Reference(GPT2, T=9),
    "GPT-2, padded before": Reference(GPT2, starts=(0, 3, 6), B=3),
    "GPT-2, padded behind": Reference({**GPT2, "hidden_dim": 10, "num_heads": 1}, lengths=(7, 2, 4), B=3),
    "GPT-2, three layers": Reference({**GPT2, "num_layers": 3, "dim": 8, "num_heads": 2, "hidden_dim": 11}, B=1, T=5),
    "LLaMA": Reference({**LLAMA, "tie_embeddings": False}, family="llama"),
    "LLaMA, tied, padded before": Reference({**LLAMA, "tie_embeddings": True}, starts=(4, 0), family="llama"),
}


def results(case, arrays, dtype):
    """Loss, logits, states and gradients, as float64 NumPy arrays."""
    model = case.model().eval().to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name]))
    exists = torch.from_numpy(arrays["exists"])
    out = model(
        input_ids=torch.from_numpy(arrays["tokens"]), attention_mask=exists.long(),
        position_ids=(exists.long().cumsum(1) - 1).clamp(min=0), output_hidden_states=True, use_cache=False,
    )  # fmt: skip
    labels = torch.from_numpy(arrays["labels"])[:, 1:]  # the models' own loss is computed in float32
    loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100)
    loss.backward()
    states = {f"state_{n}": state for n, state in enumerate(out.hidden_states)}
    found = {name: x * exists[..., None] for name, x in {"logits": out.logits, **states}.items()}
    found = {"loss": loss, **found, **{f"grad_{name}": p.grad for name, p in model.named_parameters()}}
    return {name: x.detach().double().numpy() for name, x in found.items()}


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, single = {}, 0.0
    for name, case in CASES.items():
        arrays = case.arrays(np.random.default_rng(zlib.crc32(name.encode())))
        expected = results(case, arrays, torch.float64)
        difference = largest_difference(results(case, arrays, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        stored |= packed(name, case.options, {**arrays, **expected})
    path = Path(__file__).with_name("gpt2.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

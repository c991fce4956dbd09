"""Make bert.npz: BERT by transformers, in float64: states of every layer, pooled vectors, logits, all gradients.

Run with transformers 5.23, PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_bert.py`.

Models are `BertModel`, `BertForMaskedLM` and `BertForPreTraining` with random weights, multiples of 1/64, by the names
that transformers gives them. Padded places have token 0, which stands nowhere else: transformers gives that row of the
embedding no gradient. They count in no loss and no cotangent. The losses are those of the models themselves: the mean
cross-entropy of masked tokens, and that of the next sentence added to it; for `BertModel` it is the sum of states and
pooled vectors times `dstates` and `dpooled`.

The form of the file is that of sdpa.npz.
"""

import copy
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from make_positions import drawn
from make_sdpa import largest_difference, packed

SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32

SIZES = {
    "vocab_size": 17, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
    "max_position_embeddings": 9, "type_vocab_size": 2,
}  # fmt: skip
# The class, changes of the sizes above, and which tokens exist.
CASES = {
    "pretraining": ("BertForPreTraining", {}, [7, 4, 6]),
    "pretraining, approximate gelu": ("BertForPreTraining", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}, [5, 7]),
    "masked tokens": ("BertForMaskedLM", {"type_vocab_size": 3, "hidden_size": 8, "num_attention_heads": 2}, [6, 6]),
    "encoder": ("BertModel", {"num_hidden_layers": 3, "hidden_size": 6}, [3, 5, 8, 1]),
    "encoder, padded before": ("BertModel", {"hidden_act": "relu"}, [-4, -7, -2]),
}


def inputs(rng, sizes, lengths):
    """Tokens, types and which tokens exist (B, T), lengths below 0 counted from the end."""
    T, B = max(map(abs, lengths)), len(lengths)
    places = np.arange(T)
    exists = np.array([places < n if n > 0 else places >= T + n for n in lengths])
    tokens = rng.integers(1, sizes["vocab_size"], (B, T)) * exists
    return {"tokens": tokens, "types": rng.integers(0, sizes["type_vocab_size"], (B, T)), "exists": exists}


def cotangents(rng, kind, sizes, exists):
    """The terms of the loss: targets, with -100 to ignore, or cotangents."""
    B, T, E = *exists.shape, sizes["hidden_size"]
    if kind == "BertModel":
        return {"dstates": drawn(rng, B, T, E) * exists[..., None], "dpooled": drawn(rng, B, E) * exists[:, :1]}
    asked = exists & (rng.random((B, T)) < 0.5)
    found = {"labels": np.where(asked, rng.integers(0, sizes["vocab_size"], (B, T)), -100)}
    return {**found, "next": rng.integers(0, 2, B)} if kind == "BertForPreTraining" else found


def results(model, kind, given, dtype):
    model = copy.deepcopy(model).to(dtype)
    given = {name: torch.from_numpy(array) for name, array in given.items()}
    words = {"input_ids": given["tokens"], "token_type_ids": given["types"], "attention_mask": given["exists"].long()}
    labels = {"labels": given["labels"]} if "labels" in given else {}
    labels |= {"next_sentence_label": given["next"]} if "next" in given else {}
    out = model(**words, **labels, output_hidden_states=True)
    found = {f"state_{n}": state for n, state in enumerate(out.hidden_states)}
    if kind == "BertModel":
        loss = (out.last_hidden_state * given["dstates"].to(dtype)).sum()
        loss = loss + (out.pooler_output * given["dpooled"].to(dtype)).sum()
        found["pooled"] = out.pooler_output
    else:
        loss = out.loss
        found["logits"] = out.logits if kind == "BertForMaskedLM" else out.prediction_logits
    if kind == "BertForPreTraining":
        found |= {"next_logits": out.seq_relationship_logits}
    loss.backward()
    found |= {"loss": loss} | {f"grad_{name}": weight.grad for name, weight in model.named_parameters()}
    return {name: array.detach().double().numpy() for name, array in found.items()}


def made(rng, kind, sizes):
    """The model, with random weights."""
    config = transformers.BertConfig(
        **sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager"
    )
    model = getattr(transformers, kind)(config).double().train()
    for name, weight in model.named_parameters():
        scaled = drawn(rng, *weight.shape) / 4
        middle = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        weight.data = torch.from_numpy(np.round(64 * scaled) / 64 + middle)
    model.tie_weights()
    return model


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, single = {}, 0.0
    for name, (kind, changes, lengths) in CASES.items():
        rng, sizes = np.random.default_rng(zlib.crc32(name.encode())), {**SIZES, **changes}
        model = made(rng, kind, sizes)
        given = inputs(rng, sizes, lengths)
        given |= cotangents(rng, kind, sizes, given["exists"])
        expected = results(model, kind, given, torch.float64)
        difference = largest_difference(results(model, kind, given, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        weights = {f"param_{n}": weight.detach().numpy() for n, weight in model.named_parameters()}
        config = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, **sizes}
        stored |= packed(name, {"kind": kind, "config": config}, {**given, **weights, **expected})
    path = Path(__file__).with_name("bert.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(stored) // 2} configurations, {path.stat().st_size} bytes")
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, numpy {np.__version__}"
    print(f"{versions}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()

"""Make encoders.npz and others: published models by transformers, in float64: outputs, and gradients of parameters.

Run with transformers 5.24, PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_published.py`.

Weights, cotangents and directions are a formula of their names, so the file holds none of them: of each gradient it has
the sums of its products with two such directions. The form of the file is that of sdpa.npz; its options are the
config.json, and the names and shapes of all tensors of model.safetensors.
"""

import json
import math
import tempfile
import zlib
from pathlib import Path

import numpy as np

SEEDS = (0, 1)
VOCAB, LENGTHS, T = 13, (5, 3), 5
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 10,
    "max_position_embeddings": 9,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": VOCAB,
    "dim": 8,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 10,
    "max_position_embeddings": 9,
}
ROBERTA = {**SIZES, "type_vocab_size": 1, "pad_token_id": 1}
# Beginning of the classes, the options of the configuration, and the ends of the classes.
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification")
ALL = (*HEADS, "ForTokenClassification", "ForQuestionAnswering")
ENCODERS = {
    "Bert": (SIZES, ALL[2:]),
    "Roberta": (ROBERTA, ALL),
    "XLMRoberta": (ROBERTA, HEADS[:1]),
    "Camembert": (ROBERTA, HEADS[1:2]),
    "DistilBert": (DISTILBERT, ALL),
    "Electra": ({**SIZES, "embedding_size": 6}, ALL),
    "MPNet": ({**SIZES, "pad_token_id": 1}, HEADS),
    "Albert": ({**SIZES, "embedding_size": 6}, HEADS),
    "ModernBert": ({**SIZES, "num_hidden_layers": 3, "local_attention": 4, "global_attn_every_n_layers": 2,
                    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
                   ("Model", "ForMaskedLM")),
}  # fmt: skip
BART = {
    "vocab_size": VOCAB, "d_model": 8, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 10, "decoder_ffn_dim": 10, "max_position_embeddings": 9,
}  # fmt: skip
MARIAN = {**BART, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2, "activation_function": "swish",
          "scale_embedding": True}  # fmt: skip
T5 = {
    "vocab_size": VOCAB,
    "d_model": 8,
    "d_kv": 3,
    "num_heads": 2,
    "d_ff": 10,
    "num_layers": 2,
    "decoder_start_token_id": 0,
}
ENCODER_DECODERS = {
    "Bart": (BART, ("ForConditionalGeneration",)),
    "Marian": (MARIAN, ("MTModel",)),
    "T5": (T5, ("ForConditionalGeneration",)),
    "T5 1.1": ({**T5, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 1, "relative_attention_num_buckets": 8,
                "relative_attention_max_distance": 6}, ("ForConditionalGeneration",)),
}  # fmt: skip
BEAMS, COUNT = 3, 6


def formula(name, shape, seed=0):
    """Numbers that depend on the name alone: multiples of 1/256 from -1/2 to 1/2."""
    phase = zlib.crc32(f"{seed} {name}".encode())
    index = np.arange(1, math.prod(shape) + 1)
    return (np.round(128 * np.sin(phase % 6271 + (1.0 + phase % 97 / 89) * index)) / 256).reshape(shape)


def weight(name, shape, seed):
    """The weight of a name: norms are around 1."""
    centered = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
    return formula(name, shape, seed) + centered


def directions(name, shape):
    """Two directions, with which gradients are multiplied."""
    return [formula(f"direction {n} of {name}", shape) for n in range(2)]


def tokens(pad, seed):
    """Tokens (B, T), and which exist."""
    exists = np.arange(T) < np.array(LENGTHS)[:, None]
    drawn = np.floor((formula("tokens", (len(LENGTHS), T), seed) + 0.5) * (VOCAB - 2.01)).astype(np.int64) + 2
    return np.where(exists, drawn, pad), exists


def text_outputs(model, config, seed):
    """The inputs and the outputs of an encoder of text, each with the positions that exist."""
    import torch

    given, exists = tokens(config.pad_token_id, seed)
    out = model(input_ids=torch.from_numpy(given), attention_mask=torch.from_numpy(exists).long())
    found = {}
    if "start_logits" in out:
        found["logits"] = torch.stack([out.start_logits, out.end_logits], -1)
    for name, key in (("logits", "logits"), ("states", "last_hidden_state"), ("pooled", "pooler_output")):
        if out.get(key) is not None:
            found[name] = out[key]
    found = {name: x * torch.from_numpy(exists)[:, :, None] if x.ndim == 3 else x for name, x in found.items()}
    return {"tokens": given, "exists": exists}, found


def pair_outputs(model, config, seed):
    """The same of an encoder-decoder, and the tokens that it generates greedily and by beams."""
    import torch

    source, exists = tokens(config.pad_token_id, seed)
    target, _ = tokens(config.pad_token_id, seed + 100)  # not padding: transformers gives its row no gradient
    target = np.maximum(target, 2)
    given = {"input_ids": torch.from_numpy(source), "attention_mask": torch.from_numpy(exists).long()}
    logits = model(**given, decoder_input_ids=torch.from_numpy(target)).logits
    found = {}
    for name, beams in (("greedy", 1), ("beams", BEAMS)):
        made = model.generate(
            **given, max_new_tokens=COUNT, min_new_tokens=0, num_beams=beams, do_sample=False, early_stopping=False,
            length_penalty=1.0, forced_eos_token_id=None, forced_bos_token_id=None, no_repeat_ngram_size=0,
            eos_token_id=2, decoder_start_token_id=0, bad_words_ids=None, pad_token_id=2,
        )  # fmt: skip
        found[name] = made[:, 1:].numpy()
    return {"tokens": source, "exists": exists, "target": target, **found}, {"logits": logits}


FILES = {"encoders": (ENCODERS, text_outputs), "encoder_decoders": (ENCODER_DECODERS, pair_outputs)}


def exact_norm(norm, x):
    """T5LayerNorm, which takes the mean in float32, in the dtype of x."""
    return norm.weight * (x * (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt())


def exact_angles(rotation, x, position_ids, layer_type):
    """The cosines and sines of ModernBERT, which takes them in float32, in float64."""
    import torch

    width = rotation.config.hidden_size // rotation.config.num_attention_heads
    base = rotation.config.rope_parameters[layer_type]["rope_theta"]
    angles = position_ids[..., None].double() * base ** (-torch.arange(0, width, 2).double() / width)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def exact_rotation(q, k, cos, sin, unsqueeze_dim):
    """The rotation of queries and keys in their dtype."""
    from transformers.models.modernbert.modeling_modernbert import rotate_half

    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def made(stem, suffix, options, seed):
    """A model with the weights of the formula, its configuration, and what is written of it."""
    import torch
    import transformers

    stem = stem.partition(" ")[0]
    transformers.models.t5.modeling_t5.T5LayerNorm.forward = exact_norm
    modern = transformers.models.modernbert.modeling_modernbert
    modern.ModernBertRotaryEmbedding.forward, modern.apply_rotary_pos_emb = exact_angles, exact_rotation
    attention = "sdpa" if stem == "ModernBert" else "eager"  # whose softmax is that of float32
    classes = {"num_labels": 3} if suffix.endswith("Classification") else {}
    config = getattr(transformers, f"{stem}Config")(**options, **classes)
    model = getattr(transformers, f"{stem}{suffix}")._from_config(config, attn_implementation=attention).double().eval()
    state, contents = model.state_dict(), written(model)
    for name, shape in contents["tensors"].items():
        state[name].copy_(torch.from_numpy(weight(name, tuple(shape), seed)))
    if stem == "Marian":  # whose table is rounded to float32
        for side in (model.model.encoder, model.model.decoder):
            angles = np.arange(9)[:, None] / 10000 ** (np.arange(0, 8, 2) / 8)
            side.embed_positions.weight.copy_(torch.from_numpy(np.hstack([np.sin(angles), np.cos(angles)])))
    return model, config, contents


def results(stem, suffix, options, seed, outputs=text_outputs):
    """The model, its files, and its arrays: inputs, outputs, products of gradients with directions, by tensors."""
    import torch

    model, config, contents = made(stem, suffix, options, seed)
    inputs, found = outputs(model, config, seed)
    sum((x * torch.from_numpy(formula(f"d{name}", tuple(x.shape)))).sum() for name, x in found.items()).backward()
    grads = {}
    every = dict(model.named_parameters(remove_duplicate=False))
    for name in contents["tensors"]:
        if name not in every:  # a buffer
            continue
        parameter = every[name]
        gradient = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        grads[f"grad_{name}"] = np.array([np.sum(gradient * v) for v in directions(name, gradient.shape)])
    return model, contents, {**inputs, **{name: x.detach().numpy() for name, x in found.items()}, **grads}


def written(model):
    """The config.json of a model, and the names and shapes of the tensors of its file."""
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder, "model.safetensors"), "np") as file:
            tensors = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return {"config": json.loads(Path(folder, "config.json").read_text()), "tensors": tensors}


def main():
    """Write the files."""
    import torch
    import transformers
    from make_sdpa import packed

    for file, (families, outputs) in FILES.items():
        stored = {}
        for stem, (options, suffixes) in families.items():
            for suffix in suffixes:
                arrays = {}
                for seed in SEEDS:
                    _, contents, found = results(stem, suffix, options, seed, outputs)
                    arrays |= {f"{seed} {name}": array for name, array in found.items()}
                stored |= packed(f"{stem}{suffix}", contents, arrays)
        path = Path(__file__).with_name(f"{file}.npz")
        np.savez_compressed(path, **stored)
        print(f"{path.name}: {len(stored) // 2} models, {path.stat().st_size} bytes")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, numpy {np.__version__}")


if __name__ == "__main__":
    main()

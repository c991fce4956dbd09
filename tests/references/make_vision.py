"""Make vision.npz: ViT by transformers, in float64: outputs, and products of gradients with directions.

Run with transformers 5.24, PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_vision.py`.

The form of the file, the weights and the directions are those of make_published.py. transformers renames tensors
when it reads and writes, so weights are given as a file, and gradients are written as if they were weights. Its eager
attention has a softmax in float32, so this is the other one.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from make_published import directions, formula, weight, written

SEEDS = (0, 1)
SIZES = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 10, "image_size": 6,
    "patch_size": 3, "num_channels": 2,
}  # fmt: skip
MODELS = {
    "ViTModel": SIZES,
    "ViTForImageClassification": {**SIZES, "image_size": [4, 9], "patch_size": [2, 3], "qkv_bias": False,
                                  "hidden_act": "gelu_new", "num_labels": 3},
}  # fmt: skip
OUTPUTS = {"states": "last_hidden_state", "pooled": "pooler_output", "class_logits": "logits"}


def results(name, seed):
    """The model, its files, and its arrays: images (channels last), outputs, products of gradients with directions."""
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    kind = getattr(transformers, name)
    config = transformers.ViTConfig(**MODELS[name])
    contents = written(kind(config))
    with tempfile.TemporaryDirectory() as folder:
        tensors = {key: weight(key, tuple(shape), seed) for key, shape in contents["tensors"].items()}
        save_file(tensors, Path(folder, "model.safetensors"), {"format": "pt"})
        Path(folder, "config.json").write_text(json.dumps(contents["config"]))
        model = kind.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    size = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
    images = formula("images", (2, *size, 2), seed)
    out = model(pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2))
    found = {ours: out[theirs] for ours, theirs in OUTPUTS.items() if out.get(theirs) is not None}
    sum((x * torch.from_numpy(formula(f"d{key}", tuple(x.shape)))).sum() for key, x in found.items()).backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        grads = load_file(Path(folder, "model.safetensors"))
    products = {f"grad_{key}": np.array([np.sum(x * v) for v in directions(key, x.shape)]) for key, x in grads.items()}
    return contents, {"images": images, **{key: x.detach().numpy() for key, x in found.items()}, **products}


def main():
    """Write the file."""
    import torch
    import transformers
    from make_sdpa import packed

    stored = {}
    for name in MODELS:
        arrays = {}
        for seed in SEEDS:
            contents, found = results(name, seed)
            arrays |= {f"{seed} {key}": array for key, array in found.items()}
        stored |= packed(name, contents, arrays)
    path = Path(__file__).with_name("vision.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(stored) // 2} models, {path.stat().st_size} bytes")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, numpy {np.__version__}")


if __name__ == "__main__":
    main()

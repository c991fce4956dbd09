"""Make rotary.npz: frequencies and attention factors of scaled rotations, and rotations by several coordinates.

Run with PyTorch 2.13 (CPU) and transformers 5.24: `python tests/references/make_rotary.py`.

- scalings: what `modeling_rope_utils.ROPE_INIT_FUNCTIONS` of transformers return, with float64 in place of float32.
- sections: queries rotated as in Qwen2-VL (float32), whose positions are of time, height and width.
- axial: queries rotated as in Qwen2-VL's images (float32), whose patches have rows and columns.

The form of the file is that of sdpa.npz.
"""

import types
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from make_sdpa import packed
from transformers import LlamaConfig, modeling_rope_utils
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen

# rope_type, head_dim, base, max_position_embeddings, seq_len, and the entries of rope_parameters
SCALINGS = {
    "linear": ("linear", 16, 1e4, 64, 50, {"factor": 4.0}),
    "dynamic, short": ("dynamic", 16, 1e4, 64, 50, {"factor": 2.0}),
    "dynamic, long": ("dynamic", 16, 1e4, 64, 201, {"factor": 2.0}),
    "yarn": ("yarn", 32, 1e4, 256, 50, {"factor": 4.0, "original_max_position_embeddings": 64}),
    "yarn, all": ("yarn", 24, 1e6, 4096, 50, {
        "factor": 16.0, "original_max_position_embeddings": 256, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7,
        "mscale_all_dim": 1.5, "truncate": False}),
    "yarn, factor": ("yarn", 16, 1e4, 512, 50, {
        "factor": 8.0, "original_max_position_embeddings": 64, "attention_factor": 1.25}),
    "llama3": ("llama3", 32, 5e5, 512, 50, {
        "factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    "longrope, short": ("longrope", 8, 1e4, 256, 64, {
        "original_max_position_embeddings": 64, "short_factor": [1.0, 1.25, 1.5, 2.0],
        "long_factor": [1.0, 2.0, 3.0, 5.0], "factor": 4.0}),
    "longrope, long": ("longrope", 8, 1e4, 256, 65, {
        "original_max_position_embeddings": 64, "short_factor": [1.0, 1.25, 1.5, 2.0],
        "long_factor": [1.0, 2.0, 3.0, 5.0], "factor": 4.0}),
    "partial, linear": ("linear", 16, 1e4, 64, 50, {"factor": 3.0, "partial_rotary_factor": 0.5}),
}  # fmt: skip


def in_float64():
    """PyTorch's names with float64 for `float` and `float32`."""
    names = {name: getattr(torch, name) for name in dir(torch)}
    return types.SimpleNamespace(**{**names, "float": torch.float64, "float32": torch.float64})


def scaling(kind, width, base, longest, seq_len, entries):
    config = LlamaConfig(
        hidden_size=2 * width, num_attention_heads=2, head_dim=width, max_position_embeddings=longest,
        rope_parameters={"rope_type": kind, "rope_theta": base, **entries},
    )  # fmt: skip
    frequencies, factor = modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=seq_len)
    assert frequencies.dtype == torch.float64
    return {"frequencies": frequencies.numpy(), "attention_factor": np.array(float(factor))}


def coordinates(rng):
    """Queries (B, H, T, D) rotated as in a text with images: pairs (2, 3, 3) by time, height and width."""
    x, positions = np.round(64 * rng.standard_normal((2, 3, 5, 16))) / 64, rng.integers(0, 9, (3, 2, 5))
    config = transformers.Qwen2VLConfig(
        text_config={
            "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        }
    )  # fmt: skip
    q = torch.from_numpy(x).float()
    rotation = qwen.Qwen2VLRotaryEmbedding(config.get_text_config())
    cos, sin = rotation(q, torch.from_numpy(positions))
    out, _ = qwen.apply_rotary_pos_emb(q, q, cos, sin)
    return {"x": x, "positions": np.moveaxis(positions, 0, -1), "out": out.double().numpy()}


def rows_and_columns(rng):
    """Queries (T, H, D) rotated as patches of an image."""
    x, positions = np.round(64 * rng.standard_normal((6, 3, 16))) / 64, rng.integers(0, 9, (6, 2))
    config = transformers.Qwen2VLConfig(vision_config={"embed_dim": 48, "num_heads": 3}).vision_config
    q = torch.from_numpy(x).float()
    cos, sin = qwen.Qwen2VLVisionRotaryEmbedding(config)(q, torch.from_numpy(positions))
    out, _ = qwen.apply_rotary_pos_emb_vision(q, q, cos, sin)
    return {"x": x, "positions": positions, "out": out.double().numpy()}


def main():
    stored = {}
    modeling_rope_utils.torch = in_float64()
    for name, (kind, width, base, longest, seq_len, entries) in SCALINGS.items():
        options = {"kind": kind, "width": width, "base": base, "max_seq_len": longest, "seq_len": seq_len, **entries}
        stored |= packed(f"scaling: {name}", options, scaling(kind, width, base, longest, seq_len, entries))
    modeling_rope_utils.torch = torch
    for name, make in {"sections": coordinates, "axial": rows_and_columns}.items():
        stored |= packed(name, {}, make(np.random.default_rng(zlib.crc32(name.encode()))))
    path = Path(__file__).with_name("rotary.npz")
    np.savez_compressed(path, **stored)
    print(
        f"{path.name}: {path.stat().st_size} bytes; torch {torch.__version__}, transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()

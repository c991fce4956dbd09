"""The encoder of Whisper tiny for `inference.py`: convolutions of a log-mel spectrogram, and a prepared encoder."""

from __future__ import annotations

from typing import Any

import numpy as np

import attnarray as aa
from benchmarks.inference_cases import OURS, TORCH, Case, checked

BLOCK = {
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj", "attention_norm": "self_attn_layer_norm", "feed_forward.hidden": "fc1",
    "feed_forward.out": "fc2", "feed_forward_norm": "final_layer_norm",
}  # fmt: skip


def whisper_case(quick: bool) -> Case:
    """The states of 30 seconds of sound, with random weights of the shape of Whisper tiny."""
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    sizes = (48, 2, 2, 96, 50) if quick else (384, 4, 6, 1536, 1500)
    dim, layers, heads, hidden, positions = sizes
    config = WhisperConfig(
        d_model=dim, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=hidden,
        max_source_positions=positions, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = WhisperEncoder(config).eval()
    state = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
    encoder = aa.models.Encoder(dim, layers, heads, hidden)
    prepared = encoder.prepare(_params(encoder, state))
    mels = np.random.default_rng(0).standard_normal((1, 2 * positions, 80), np.float32)
    tensor = torch.from_numpy(mels).mT

    def ours() -> Any:
        x = aa.gelu(aa.conv1d(mels, state["conv1.weight"], state["conv1.bias"]))
        x = aa.gelu(aa.conv1d(x, state["conv2.weight"], state["conv2.bias"], stride=2, padding=1))
        return prepared(x + state["embed_positions.weight"])

    @torch.inference_mode()
    def eager() -> Any:
        return theirs(tensor).last_hidden_state

    return checked(
        Case(f"encoder of Whisper{' (small)' if quick else ' tiny'}, 30 seconds", {OURS: ours, TORCH: eager})
    )


def _params(encoder: Any, state: dict[str, Any]) -> Any:
    """The parameters of the encoder; Whisper's keys have no bias, which changes no weight of attention."""
    params = encoder.init(aa.Philox(0))
    for n, block in enumerate(params["blocks"]):
        for path, name in BLOCK.items():
            part = block
            for key in path.split("."):
                part = part[key]
            for leaf in part:
                part[leaf] = state.get(f"layers.{n}.{name}.{leaf}", np.zeros_like(part[leaf]))
    params["norm"] = {leaf: state[f"layer_norm.{leaf}"] for leaf in ("weight", "bias")}
    return params

"""The cases of `inference.py`: an encoder of MiniLM's shape, GPT-2 small and SmolLM2-135M, prepared, and peers.

Weights are random; both shapes are those of published models. Peers are checked against ours before anything is timed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from attnarray import Rotary, tree
from attnarray.checkpoints import save_pretrained
from attnarray.models import BERT, GPT
from attnarray.models.bert.published import bert_names
from benchmarks.model_cases import random_params

SIZES = ((1, 16), (1, 64), (1, 128), (8, 32), (32, 64), (8, 256))
AGREEMENT = {"float32": 1e-4, "bfloat16": 3e-2}  # relative to the largest number, after all blocks
OURS, HALVES, TORCH, ONNX = "attnarray", "attnarray, bfloat16 weights", "transformers", "ONNX Runtime"


class Case(NamedTuple):
    """What is timed: the same call on each side."""

    name: str
    sides: dict[str, Callable[[], Any]]


def minilm(quick: bool) -> BERT:
    """The shape of all-MiniLM-L6-v2."""
    if quick:
        return BERT(vocab_size=99, max_seq_len=64, dim=48, num_layers=2, num_heads=4, mask_head=False)
    return BERT(
        vocab_size=30522, max_seq_len=512, dim=384, num_layers=6, num_heads=12, hidden_dim=1536, mask_head=False
    )


def encoder_cases(quick: bool, threads: int) -> list[Case]:
    """States of all tokens and pooled vectors, without padding."""
    import torch

    from benchmarks.inference_onnx import bert_session

    model = minilm(quick)
    params = random_params(model)
    prepared, theirs, session = model.prepare(params), torch_bert(model, params), bert_session(model, params, threads)
    rng, cases = np.random.default_rng(1), []
    for batch, length in SIZES[:1] if quick else SIZES:
        tokens = rng.integers(model.vocab_size, size=(batch, length))
        tensor = torch.from_numpy(tokens)
        feeds = {"tokens": tokens.astype(np.int32), "types": np.zeros_like(tokens, np.int32)}
        feeds["mask"] = np.ones_like(feeds["types"])

        def ours(tokens: Any = tokens) -> Any:
            return prepared(tokens).states

        @torch.inference_mode()
        def eager(tensor: Any = tensor) -> Any:
            return theirs(input_ids=tensor).last_hidden_state

        def onnx(feeds: Any = feeds) -> Any:
            return session.run(None, feeds)[0]

        case = Case(f"encoder, {batch} x {length} tokens", {OURS: ours, TORCH: eager, ONNX: onnx})
        cases.append(checked(case))
    return cases


def gpt2(quick: bool) -> GPT:
    """GPT-2 small."""
    return GPT(vocab_size=300, max_seq_len=64, dim=64, num_layers=2, num_heads=4) if quick else GPT.small()


def smollm2(quick: bool) -> GPT:
    """The shape of SmolLM2-135M."""
    options: Any = {
        "positions": "rotary", "rotary": Rotary(base=100_000.0), "norm": "rms", "activation": "silu", "gated": True,
        "bias": False, "num_kv_heads": 3,
    }  # fmt: skip
    if quick:
        return GPT(300, 64, 72, 2, 9, 96, **options)
    return GPT(49152, 8192, 576, 30, 9, 1536, **options)


def decoding_case(quick: bool, title: str, model: GPT) -> Case:
    """The logits after one token, with the keys and values of 512 in a cache."""
    import torch

    before = 16 if quick else 512
    params = random_params(model)
    tokens = np.random.default_rng(1).integers(model.vocab_size, size=(1, before + 1))
    sides: dict[str, Callable[[], Any]] = {}
    for name, weights in ((OURS, None), (HALVES, "bfloat16")):
        prepared = model.prepare(params, weights=weights)  # type: ignore[arg-type]
        _, read = prepared.step(tokens[:, :before], prepared.cache(1, before + 1), last=True)

        def ours(prepared: Any = prepared, read: Any = read) -> Any:
            return prepared.step(tokens[:, before:], read, last=True)[0]

        sides[name] = ours
    theirs, tensor = torch_decoder(model, params), torch.from_numpy(tokens)
    with torch.inference_mode():
        past = theirs(tensor[:, :before], use_cache=True).past_key_values

    @torch.inference_mode()
    def eager() -> Any:
        if past.get_seq_length() > before:
            past.crop(before - past.get_seq_length())
        return theirs(tensor[:, before:], past_key_values=past, use_cache=True).logits

    sides[TORCH] = eager
    return checked(Case(f"{title}, one token after {before}", sides))


def torch_bert(model: BERT, params: Any) -> Any:
    """The model of transformers with PyTorch's attention."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=model.vocab_size, hidden_size=model.dim, num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads, intermediate_size=model.hidden_dim or 4 * model.dim,
        max_position_embeddings=model.max_seq_len, layer_norm_eps=model.eps, attn_implementation="sdpa",
    )  # fmt: skip
    theirs = BertModel(config).eval()
    tensors = {
        tensor.name: torch.from_numpy(tree.get(params, tensor.leaves()[0])) for tensor in bert_names(model).tensors
    }
    theirs.load_state_dict({name.removeprefix("bert."): tensor for name, tensor in tensors.items()})
    return theirs


def torch_decoder(model: GPT, params: Any) -> Any:
    """The model of transformers with PyTorch's attention, by a folder that it reads."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, model, params)
        theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype="float32")
    return theirs.eval()


def checked(case: Case) -> Case:
    """The case, if all sides agree with transformers."""
    expected = np.asarray(case.sides[TORCH]())
    for name, run in case.sides.items():
        found = np.asarray(run())
        difference = float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
        if not difference < AGREEMENT["bfloat16" if name == HALVES else "float32"]:
            sys.exit(f"{case.name}: {name} differs from transformers by {difference:.1e}, so nothing is timed.")
    return case

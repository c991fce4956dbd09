"""The cases of `models.py`: a training step of a GPT, prefill and generation, ours and PyTorch's.

Both sides have the same weights and do the same work in float32.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa
from attnarray import optim
from attnarray.models import GPT

BETAS, RATE, DECAY = (0.9, 0.95), 3e-4, 0.1
AGREEMENT = 1e-3  # relative: float32 through 12 blocks, in another order of sums


class Case(NamedTuple):
    """What is timed, `tokens` of it in each call."""

    name: str
    tokens: int
    ours: Callable[[], Any]
    torch: Callable[[], Any]


class Training(NamedTuple):
    """A model in training: its gradients of token and position embeddings by name, and a step with AdamW."""

    gradients: Callable[[], dict[str, Any]]
    step: Callable[[], None]


def trained_model(quick: bool) -> GPT:
    """The model whose training is measured."""
    return GPT(vocab_size=256, max_seq_len=32 if quick else 256, dim=256, num_layers=1 if quick else 6, num_heads=8)


def training_tokens(quick: bool) -> np.ndarray:
    """Sequences (B, T + 1)."""
    return np.random.default_rng(1).integers(256, size=(2 if quick else 8, trained_model(quick).max_seq_len + 1))


def our_training(quick: bool, recompute: bool = False) -> Training:
    """Forward, loss, backward and AdamW, written as usual."""
    model, tokens = dataclasses.replace(trained_model(quick), recompute=recompute), training_tokens(quick)
    params = random_params(model)
    state = optim.adamw_init(params)

    def gradients() -> Any:
        logits, ctx = model.fwd(params, tokens[:, :-1])
        loss, loss_ctx = aa.cross_entropy_fwd(logits, tokens[:, 1:])
        return model.bwd(aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, ctx).params

    def step() -> None:
        nonlocal params, state
        params, state = optim.adamw(params, gradients(), state, lr=RATE, betas=BETAS, weight_decay=DECAY)

    return Training(lambda: {name: gradients()[name]["weight"] for name in ("token", "position")}, step)


def torch_training(quick: bool) -> Training:
    """The same in PyTorch eager."""
    import torch

    from benchmarks.torch_gpt import TorchGPT

    model = trained_model(quick)
    theirs, tokens = TorchGPT(model, random_params(model)), torch.from_numpy(training_tokens(quick))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)

    def backward() -> None:
        optimizer.zero_grad()
        logits = theirs(tokens[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()

    def step() -> None:
        backward()
        optimizer.step()

    def gradients() -> dict[str, Any]:
        backward()
        return {name: getattr(theirs, name).grad for name in ("token", "position")}

    return Training(gradients, step)


def training_step(quick: bool) -> Case:
    """Forward, loss, backward and AdamW of both, whose gradients agree."""
    ours, theirs = our_training(quick), torch_training(quick)
    expected = theirs.gradients()
    for name, gradient in ours.gradients().items():
        agree(f"gradient of the embeddings of each {name}", gradient, expected[name])
    model, (B, places) = trained_model(quick), training_tokens(quick).shape
    name = f"training step, {model.num_layers} layers of {model.dim}, batch {B} x {places - 1}"
    return Case(name, B * (places - 1), ours.step, theirs.step)


def generation(quick: bool) -> list[Case]:
    """Prefill of a prompt, and generation after it token by token, with caches."""
    import torch

    from benchmarks.torch_gpt import TorchGPT

    model = GPT(vocab_size=300, max_seq_len=64, dim=64, num_layers=2, num_heads=4) if quick else GPT.small()
    prompt, count = (16, 4) if quick else (512, 32)
    params = random_params(model)
    theirs = TorchGPT(model, params)
    tokens = np.random.default_rng(1).integers(model.vocab_size, size=(1, prompt))
    max_seq_len = prompt + count
    our_room, their_room = model.cache(1, max_seq_len), theirs.cache(1, max_seq_len)

    def we_read() -> Any:
        return model.step(params, tokens, our_room, last=True)

    @torch.inference_mode()
    def they_read() -> torch.Tensor:
        return theirs(torch.from_numpy(tokens), their_room, last=True)

    def we_write() -> Any:
        told, cache = tokens[:, -1:], read
        for _ in range(count):
            logits, cache = model.step(params, told, cache, last=True)
            told = logits.argmax(-1)
        return logits

    @torch.inference_mode()
    def they_write() -> torch.Tensor:
        told = torch.from_numpy(tokens[:, -1:])
        for start in range(prompt, max_seq_len):
            logits = theirs(told, their_room, start, last=True)
            told = logits.argmax(-1)
        return logits

    logits, read = we_read()
    agree("logits after the prompt", logits, they_read())
    agree("logits after the last token", we_write(), they_write())
    name = f"{model.num_layers} layers of {model.dim}"
    return [
        Case(f"reading a prompt of {prompt}, {name}", prompt, we_read, they_read),
        Case(f"writing {count} tokens after {prompt}, {name}", count, we_write, they_write),
    ]


def random_params(model: Any) -> Any:
    """Normal numbers of deviation 0.02, and norms with weight 1 and bias 0."""
    rng = np.random.default_rng(0)

    def made(shapes: Any, name: str) -> Any:
        if isinstance(shapes, dict):
            return {key: made(value, f"{name}.{key}") for key, value in shapes.items()}
        if isinstance(shapes, list):
            return [made(value, name) for value in shapes]
        numbers = rng.standard_normal(shapes, np.float32) * np.float32(0.02)
        return numbers + np.float32(name.endswith("norm.weight"))

    return made(model.shapes(), "")


def agree(what: str, ours: Any, theirs: Any) -> None:
    """Raise if the two sides differ."""
    theirs = theirs.detach().numpy()
    difference = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
    if not difference < AGREEMENT:
        sys.exit(f"The {what} differs from PyTorch's by {difference:.1e}: nothing is timed.")

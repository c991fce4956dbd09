"""Any published model from a folder: the class is chosen by its config.json."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from attnarray.checkpoints.pretrained import load_pretrained
from attnarray.layers.initial import Params
from attnarray.models.bert import BERT
from attnarray.models.encoder_decoder import EncoderDecoder
from attnarray.models.gpt import GPT
from attnarray.models.vit import ViT

KINDS = (BERT, GPT, EncoderDecoder, ViT)  # each lists its families in `pretrained`


def from_pretrained(
    folder: str | os.PathLike[str], *, dtype: str | None = None, ignore: Sequence[str] = ()
) -> tuple[Any, Params]:
    """Load a model and its parameters from a folder with config.json and model.safetensors, or shards of it.

    The class of the model is that of the "model_type" and "architectures" of config.json. Nothing is downloaded. A GGUF
    file of LLaMA, Qwen2 or Qwen3 is a GPT with dequantized weights in float32; it needs the package gguf.

    Parameters
    ----------
    folder : path
        Or that of a file "NAME.gguf".
    dtype : str, optional
        That of the parameters; by default the stored one.
    ignore : sequence of str
        Beginnings of names of tensors that are ignored, such as "classifier.".

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or it lacks a file.
    checkpoints.Unsupported
        If config.json is of an unknown model, or has an option that is not supported; a ValueError.
    ValueError
        If tensors are missing, unknown, of another shape, or tied tensors differ.
    ModuleNotFoundError
        Without the package safetensors or, for such a file, gguf.

    Examples
    --------
    >>> import tempfile, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=11, max_seq_len=8, dim=4, num_layers=1, num_heads=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     aa.checkpoints.save_pretrained(folder, model, model.init(aa.Philox(0)))
    ...     again, params = aa.models.from_pretrained(folder)
    >>> type(again).__name__, again.dim
    ('GPT', 4)
    """
    return load_pretrained(KINDS, folder, dtype=dtype, ignore=ignore)

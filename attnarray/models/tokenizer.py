"""The tokenizer of a published model, by the package tokenizers."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from attnarray import checks
from attnarray.checkpoints.config import Unsupported
from attnarray.checkpoints.gguf import GGUFFile

FILE = "tokenizer.json"
CONTROL, USER_DEFINED = 3, 4  # types of tokens in GGUF files


def load_tokenizer(folder: str | os.PathLike[str], model: Any = None) -> Any:
    """Return the `tokenizers.Tokenizer` of a folder with tokenizer.json or of a GGUF file, checked to fit a model.

    Parameters
    ----------
    folder : path
        That of the model. Of a GGUF file, byte-level tokenizers of GPT-2 and SmolLM are read.
    model : BERT, GPT or another model with `vocab_size`, optional
        Whose token embedding must have a row for each token.

    Raises
    ------
    FileNotFoundError
        If the folder has no tokenizer.json.
    ValueError
        If the tokenizer has more tokens than the model, or tokenizer.json is damaged.
    checkpoints.Unsupported
        If a GGUF file has another tokenizer; a ValueError.
    ModuleNotFoundError
        Without the package tokenizers: ``pip install 'attnarray[tokenizers]'``.

    Examples
    --------
    >>> import attnarray as aa
    >>> tokenizer = aa.models.load_tokenizer("all-MiniLM-L6-v2", model)  # doctest: +SKIP
    >>> tokenizer.encode("Attention is all you need.").ids  # doctest: +SKIP
    """
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "load_tokenizer needs the package tokenizers: pip install 'attnarray[tokenizers]'."
        ) from None
    path = Path(folder)
    if path.suffix == ".gguf":
        tokenizer = _from_gguf(GGUFFile(path), tokenizers)
    else:
        path /= FILE
        if not path.is_file():
            raise FileNotFoundError(f"There is no file `{path}`. Download it from where the model is from.")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"`{path}` is not a valid tokenizer ({error}). Get another copy of it.") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    encoder = getattr(model, "encoder", model)
    if encoder is not None and largest >= encoder.vocab_size:
        raise ValueError(
            f"`{path}` has tokens up to {largest}, but the model has `vocab_size` {encoder.vocab_size}: they belong to "
            "different models. Give the folder of the model."
        )
    return tokenizer


def _from_gguf(file: GGUFFile, tokenizers: Any) -> Any:
    """A byte-level tokenizer, which merges pairs (Radford et al., 2019); that of SmolLM has each digit for itself."""
    found = {key.removeprefix("tokenizer.ggml."): value for key, value in file.fields.items()}
    kind, before = found.get("model"), found.get("pre", "gpt-2")
    if kind != "gpt2" or before not in ("gpt-2", "smollm"):
        raise Unsupported(
            f"`{file.path}` has a tokenizer {checks.shown(kind)} with pre = {checks.shown(before)}, but only 'gpt2' "
            "with 'gpt-2' or 'smollm' is read. Load the tokenizer.json of the original model instead."
        )
    tokens = found["tokens"]
    merges = [tuple(pair.split(" ")) for pair in found["merges"]]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    pieces = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, pieces]) if before == "smollm" else pieces
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    types = found.get("token_type", [1] * len(tokens))
    for special in (True, False):
        own = [
            token for token, kind in zip(tokens, types, strict=True) if kind == (CONTROL if special else USER_DEFINED)
        ]
        added = [tokenizers.AddedToken(token, special=special, normalized=False) for token in own]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    if found.get("add_bos_token", False):
        first = found["bos_token_id"]
        template = tokenizers.processors.TemplateProcessing(
            single=f"{tokens[first]} $A", special_tokens=[(tokens[first], first)]
        )
        tokenizer.post_processor = template
    return tokenizer

"""The tokenizer of a published model, by the package tokenizers."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

FILE = "tokenizer.json"


def load_tokenizer(folder: str | os.PathLike[str], model: Any = None) -> Any:
    """Return the `tokenizers.Tokenizer` of a folder with tokenizer.json, checked to fit a model.

    Parameters
    ----------
    folder : path
        That of the model.
    model : BERT, GPT or another model with `vocab_size`, optional
        Whose token embedding must have a row for each token.

    Raises
    ------
    FileNotFoundError
        If the folder has no tokenizer.json.
    ValueError
        If the tokenizer has more tokens than the model.
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
    path = Path(folder, FILE)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`. Download it from where the model is from.")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    encoder = getattr(model, "encoder", model)
    if encoder is not None and largest >= encoder.vocab_size:
        raise ValueError(
            f"`{path}` has tokens up to {largest}, but the model has `vocab_size` {encoder.vocab_size}: they belong to "
            "different models. Give the folder of the model."
        )
    return tokenizer

"""Models in folders with config.json and model.safetensors, in the format of Hugging Face transformers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attnarray import tree
from attnarray.backend import Array, asarray, dtype_name
from attnarray.checkpoints.config import Config, Unsupported
from attnarray.checkpoints.families import choose, expressed
from attnarray.checkpoints.files import TensorFile, opened, read_json, safetensors
from attnarray.checkpoints.gguf import GGUFFile
from attnarray.checkpoints.names import Family, Names, Tensor
from attnarray.checkpoints.pair import CONFIG, INDEX, WEIGHTS, read_config, write_pair
from attnarray.checks import FLOATS, shown
from attnarray.layers.checking import check_params
from attnarray.layers.initial import Params
from attnarray.layers.layer import Shapes


class Found(NamedTuple):
    """The tensors of a folder: by plain name, the file and the name in it."""

    folder: Path
    files: dict[str, tuple[TensorFile, str]]

    def read(self, name: str) -> np.ndarray:
        file, full = self.files[name]
        return file.mapped(full)

    def shown(self, name: str) -> str:
        """Name a tensor in an error message."""
        file, full = self.files[name]
        return f"The tensor `{full}` in `{file.path}`"


def load_pretrained(
    kind: Any, folder: str | os.PathLike[str], *, dtype: str | None = None, ignore: Sequence[str] = ()
) -> tuple[Any, Params]:
    """Load a model and its parameters from a folder to the current backend: see `models.from_pretrained`.

    Parameters
    ----------
    kind : class of a model, or several
        Each with an attribute `pretrained`, its families; that of the config.json is chosen.
    """
    kinds = kind if isinstance(kind, tuple) and kind else (kind,)
    for one in kinds:
        _check_kind("kind", one, "kind, folder")
    beginnings = _prefixes(ignore)
    if dtype is not None and dtype_name(dtype) not in FLOATS:
        raise ValueError(f"`dtype` is {shown(dtype)}, expected one of {', '.join(map(repr, FLOATS))}.")
    with ExitStack() as stack:
        files: list[Any]
        if Path(folder).suffix == ".gguf":
            folder = path = Path(folder)
            files = [GGUFFile(path)]
            config = files[0].config
        else:
            folder = _folder(folder)
            path = folder / CONFIG
            files = [stack.enter_context(opened(weights)) for weights in _weight_files(folder)]
            config = read_config(path, files)
        fulls = [name for file in files for name in file.names if not name.startswith(beginnings)]
        model, family = _model(kinds, path, config, fulls)
        names = family.names(model)
        found = _found(folder, files, names, set(fulls))
        _check_names(found, names, model)
        shapes = model.shapes()
        leaves: dict[tree.Path, Array] = {}
        for tensor in names.tensors:
            leaves.update(_leaves(found, tensor, shapes, dtype))
        for copy, name in names.copies.items():
            _check_copy(found, copy, name, next(h for h in names.heads if copy.startswith(h)))
    _check_dtypes(folder, leaves)
    return model, _nested(leaves, shapes)


def save_pretrained(
    folder: str | os.PathLike[str], model: Any, params: Params, *, model_type: str | None = None
) -> None:
    """Save a model and its parameters as config.json and model.safetensors, which transformers loads too.

    At any moment, even if the process is killed or the disk is full, `from_pretrained` reads the old model or the new
    one from the folder. The weights are replaced first, with a copy of their config.json, which is used while
    config.json is still the old one. Other programs do not know the copy: save again for them.

    Parameters
    ----------
    folder : path
        Created if needed. Other files are kept, except the shards and the index of a model, which model.safetensors
        replaces. Symbolic links are followed and kept, as are permissions. A killed process leaves files
        "attnarray-*.partial", which may be deleted; the next save to the folder deletes them.
    model : BERT or GPT
        The model.
    params : dict
        Its parameters, of any array library and one floating dtype.
    model_type : str, optional
        The family to write, such as "mistral"; by default the first one that has all options of the model.

    Raises
    ------
    TypeError
        If the model has no known published names, or parameters are not arrays of one floating dtype.
    ValueError
        If the parameters do not fit the model, or the model has an option that a config.json cannot express.
    OSError
        If a file cannot be written; the message names it.
    ModuleNotFoundError
        Without the package safetensors.

    Examples
    --------
    >>> import tempfile, attnarray as aa
    >>> model = aa.models.BERT(vocab_size=11, max_seq_len=8, dim=4, num_layers=1, num_heads=2, hidden_dim=6)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     aa.checkpoints.save_pretrained(folder, model, model.init(aa.Philox(0)))
    ...     again, params = aa.models.BERT.from_pretrained(folder)
    >>> again == model
    True
    """
    _check_kind("model", model, "folder, model, params")
    if isinstance(model, type):
        raise TypeError(f"`model` is the class {model.__name__}, expected an instance: {model.__name__}(...).")
    safetensors()
    check_params(params, model)
    family, config = expressed(model, model_type)
    names = family.names(model)
    tensors = {names.full(tensor.name): tensor.joined(params) for tensor in names.tensors}
    config = {**config, "dtype": next(iter(tensors.values())).dtype.name}
    write_pair(Path(folder), tensors, config)


def _folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"`folder` is {str(folder)!r}, which is not a folder. Nothing is downloaded: download "
            f"{CONFIG} and {WEIGHTS} of the model into a folder first, and give its path."
        )
    return path


def _prefixes(ignore: Any) -> tuple[str, ...]:
    """The prefixes of names to ignore, one or several non-empty strings."""
    beginnings = (ignore,) if isinstance(ignore, str) else tuple(ignore) if isinstance(ignore, Iterable) else (None,)
    if not all(isinstance(beginning, str) and beginning for beginning in beginnings):
        raise TypeError(f'`ignore` is {shown(ignore)}, expected beginnings of names, such as ("classifier.",).')
    return beginnings


def _check_kind(name: str, kind: Any, order: str) -> None:
    families = getattr(kind, "pretrained", None)
    if not isinstance(families, tuple) or not all(isinstance(family, Family) for family in families):
        raise TypeError(
            f"`{name}` is {shown(kind)}, which has no known published names; expected a BERT or a GPT. The order "
            f"is {order}. Save other models with save_state."
        )


def _weight_files(folder: Path) -> list[Path]:
    """The weights file or, if there is none, the shards that the index lists."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"There is no file `{folder / CONFIG}`.")
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".h5", ".ckpt", ".msgpack"))
        hint = (
            f" {others[0]} is not read, as reading it may run code that it holds. Convert it where it is trusted: "
            "`AutoModel.from_pretrained(folder).save_pretrained(new_folder)` of transformers writes safetensors, with "
            "the Auto class of the heads that are needed."
            if others
            else ""
        )
        raise FileNotFoundError(f"`{folder}` has neither {WEIGHTS} nor {INDEX}.{hint}")
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"`{folder / INDEX}` has no weight_map of tensors to files. Get another copy of it.")
    parts = sorted(set(listed.values()))
    away = [name for name in parts if Path(name).name != name]
    if away:
        raise ValueError(f"`{folder / INDEX}` names {away[0]!r}, expected the name of a file in the same folder.")
    missing = [name for name in parts if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"`{folder}` lacks {', '.join(missing)}, which {INDEX} lists.")
    return [folder / name for name in parts]


def _model(kinds: tuple[Any, ...], path: Path, config: Config, names: list[str]) -> tuple[Any, Family]:
    """The model of a config.json, and its family."""
    kind = None
    try:
        kind, family = choose(config, kinds)
        return kind(**family.fields(config, names)), family
    except Unsupported as error:
        raise Unsupported(f"`{path}` {error}.") from None
    except (TypeError, ValueError) as error:  # inconsistent or invalid sizes
        raise ValueError(f"`{path}` does not describe a {getattr(kind, '__name__', 'model')}: {error}") from error


def _found(folder: Path, files: list[Any], names: Names, wanted: set[str]) -> Found:
    found = Found(folder, {})
    for file in files:
        for full in filter(wanted.__contains__, file.names):
            plain = names.plain(full)
            if plain in found.files:
                raise ValueError(f"{found.shown(plain)} is duplicated as `{full}` in `{file.path}`.")
            found.files[plain] = (file, full)
    return found


def _check_names(found: Found, names: Names, model: Any) -> None:
    missing = [tensor for tensor in names.tensors if tensor.name not in found.files]
    if missing:
        first = missing[0]
        raise ValueError(
            f"`{found.folder}` lacks the tensor `{names.full(first.name)}`{_more(missing)}, which is "
            f"{_ours(first)} of {type(model).__name__}."
        )
    known = {tensor.name for tensor in names.tensors} | names.copies.keys()
    unknown = [name for name in found.files if name not in known and not names.is_ignored(name)]
    if unknown:
        kept = {start for name, (_, full) in found.files.items() if name in known for start in _beginnings(full)}
        beginnings = dict.fromkeys(_beginning(found.files[name][1], kept) for name in unknown)
        raise ValueError(
            f"{found.shown(unknown[0])}{_more(unknown)} is unknown to {type(model).__name__}. If it is not "
            f"needed: ignore=({', '.join(map(repr, beginnings))},)."
        )


def _beginning(full: str, kept: set[str]) -> str:
    """The shortest prefix of a name, in whole parts, that no needed name has."""
    return next((start for start in _beginnings(full) if start not in kept), full)


def _beginnings(full: str) -> list[str]:
    """Of "a.b.c": "a." and "a.b."."""
    return [full[: n + 1] for n, letter in enumerate(full) if letter == "."]


def _more(names: list[Any]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _ours(tensor: Tensor) -> str:
    return ", ".join(f"`params.{path}`" for path in tensor.paths)


def _leaves(found: Found, tensor: Tensor, shapes: Shapes, dtype: str | None) -> dict[tree.Path, Array]:
    """The leaves of a tensor."""
    pieces = [tree.get(shapes, path) for path in tensor.leaves()]
    rows = [piece[0] for piece in pieces]
    expected = tensor.shape(pieces)
    file, full = found.files[tensor.name]
    if file.shape(full) != expected:
        raise ValueError(
            f"{found.shown(tensor.name)} has shape {file.shape(full)}, expected {expected} for {_ours(tensor)}. "
            f"{CONFIG} and the weights are of different models."
        )
    whole = file.mapped(full)
    if dtype_name(whole.dtype) not in FLOATS:
        raise ValueError(
            f"{found.shown(tensor.name)} has dtype {whole.dtype.name}, expected one of {', '.join(FLOATS)}: quantized "
            "models are not supported."
        )
    parts = tensor.split(whole, rows)
    return {
        path: asarray(np.asarray(part, order="C"), dtype)
        for path, part in zip(tensor.leaves(), parts, strict=True)
    }  # fmt: skip


def _check_copy(found: Found, copy: str, name: str, beginning: str) -> None:
    if copy in found.files and not _same_bits(found.read(copy), found.read(name)):
        raise ValueError(
            f"{found.shown(copy)} differs from `{found.files[name][1]}`, but the model has one weight for both: they "
            f"must be tied. If it is not needed: ignore=({beginning!r},)."
        )


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other))
    return bool(np.array_equal(first, second))


def _check_dtypes(folder: Path, leaves: dict[tree.Path, Array]) -> None:
    dtypes = sorted({dtype_name(leaf.dtype) for leaf in leaves.values()})
    if len(dtypes) > 1:
        raise ValueError(
            f"The tensors in `{folder}` have different dtypes: {', '.join(dtypes)}. Give one for all, for "
            'example dtype="float32".'
        )


def _nested(leaves: dict[tree.Path, Array], shapes: Any, path: tree.Path = ()) -> Any:
    """The tree of leaves, in the order of the model's parameters."""
    if isinstance(shapes, list):
        return [_nested(leaves, inner, (*path, n)) for n, inner in enumerate(shapes)]
    if isinstance(shapes, dict):
        return {name: _nested(leaves, inner, (*path, name)) for name, inner in shapes.items()}
    return leaves[path]

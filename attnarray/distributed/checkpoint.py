"""Checkpoints of which every rank writes its part, and from which any number of ranks resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from attnarray import checks, tree
from attnarray.backend import namespace_of
from attnarray.checkpoints.replacing import replacing
from attnarray.checkpoints.state import load_state, save_state
from attnarray.distributed.communicator import Communicator, check_comm, everywhere
from attnarray.distributed.training import Pieces, Range, copy_pieces, element_ranges, joined

INDEX = "checkpoint.json"  # written last: it names the complete checkpoint


def save_sharded(folder: str | os.PathLike[str], comm: Communicator, params: tree.Tree, state: Any, step: int) -> None:
    """Save this rank's part of parameters and state; every rank must call it.

    Parameters
    ----------
    folder : path
        On a disk that all ranks see. Its file "checkpoint.json" names the last complete checkpoint: it is replaced,
        atomically, when every rank has written its part, and only then is the one before deleted.
    comm : mpi4py.MPI.Comm or the communicator that `ThreadComm` gives
    params : tree of floating arrays
        The same on every rank: each writes 1 / n of the elements.
    state
        From `sharded_init` or `sharded_update`.
    step : int
        0 or above; other than that of the checkpoint that is there.

    Raises
    ------
    ValueError, TypeError, OSError, RankError
        If something cannot be written; on every rank.
    ModuleNotFoundError
        Without the package safetensors.
    """
    check_comm(comm)
    rank, size = comm.Get_rank(), comm.Get_size()
    folder = Path(folder)
    old = everywhere(comm, _prepare, folder, step, rank, call="save_sharded")
    part = {"params": copy_pieces(params, element_ranges(params, size)[rank]), "state": state}
    everywhere(comm, save_state, _file(folder, step, rank, size), part)
    everywhere(comm, _commit, folder, {"step": step, "ranks": size}, rank)
    if rank == 0 and old is not None:
        for r in range(old["ranks"]):
            _file(folder, old["step"], r, old["ranks"]).unlink(missing_ok=True)


def load_sharded(folder: str | os.PathLike[str], comm: Communicator, params: tree.Tree) -> tuple[tree.Tree, Any, int]:
    """Load the last complete checkpoint of `save_sharded`, on any number of ranks.

    Parameters
    ----------
    folder : path
    comm : mpi4py.MPI.Comm or the communicator that `ThreadComm` gives
    params : tree of floating arrays
        Of the structure, shapes and dtypes that were saved, such as `model.init` makes.

    Returns
    -------
    params : tree
    state
        For this rank's part of the parameters.
    step : int

    Raises
    ------
    FileNotFoundError
        If there is no complete checkpoint.
    ValueError
        If the parameters are not those that were saved, or a file is damaged.
    RankError
        If another rank raised an error.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from attnarray.distributed import ThreadComm, load_sharded, save_sharded, sharded_init
    >>> params = {"weight": np.arange(5.0)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save = lambda comm: save_sharded(folder, comm, params, sharded_init(comm, params), 7)
    ...     _ = ThreadComm(3).run(save)
    ...     found = ThreadComm(2).run(lambda comm: load_sharded(folder, comm, {"weight": np.zeros(5)}))
    >>> found[0][0]["weight"].tolist(), found[1][1].first_moment["weight"].shape, found[0][2]
    ([0.0, 1.0, 2.0, 3.0, 4.0], (3,), 7)
    """
    check_comm(comm)
    return everywhere(comm, _load, Path(folder), params, comm.Get_rank(), comm.Get_size(), call="load_sharded")


def _file(folder: Path, step: int, rank: int, size: int) -> Path:
    return folder / f"step-{step}-rank-{rank}-of-{size}.safetensors"


def _index(folder: Path) -> Any:
    """What the last complete checkpoint is; None if there is none."""
    path = folder / INDEX
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _prepare(folder: Path, step: int, rank: int) -> Any:
    checks.whole("step", step, 0, 2**63, "the number of the step")
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    old = _index(folder)
    if old is not None and old["step"] == step:
        raise ValueError(f"`step` is {step}, but `{folder}` has a checkpoint of this step already.")
    return old


def _commit(folder: Path, content: dict[str, int], rank: int) -> None:
    if rank == 0:
        with replacing(folder / INDEX) as new:
            new.write([json.dumps(content).encode()])
            new.commit()


def _load(folder: Path, params: tree.Tree, rank: int, size: int) -> tuple[tree.Tree, Any, int]:
    index = _index(folder)
    if index is None:
        raise FileNotFoundError(f"`{folder}` has no {INDEX}, so no complete checkpoint of save_sharded.")
    saved_ranges, own = element_ranges(params, index["ranks"]), element_ranges(params, size)[rank]
    parts, states = [], []
    for r, ranges in enumerate(saved_ranges):
        part = load_state(_file(folder, index["step"], r, index["ranks"]))
        _check_part(part["params"], copy_pieces(params, ranges), folder)
        parts.append(part["params"])
        states.append(part["state"] if not own or _overlap(ranges, own) else None)
    state = _own_state(states, saved_ranges, own, params)
    return joined(params, parts), state, int(index["step"])


def _check_part(saved: Pieces, expected: Pieces, folder: Path) -> None:
    shapes = [{path: (str(x.dtype), tuple(x.shape)) for path, x in pieces.items()} for pieces in (saved, expected)]
    if shapes[0] != shapes[1]:
        wrong = sorted(path for path in {**saved, **expected} if shapes[0].get(path) != shapes[1].get(path))
        raise ValueError(
            f"`params` is not what was saved in `{folder}`: it differs at {', '.join(wrong[:3])}. Give parameters of "
            "the same model."
        )


def _overlap(a: list[Range], b: list[Range]) -> bool:
    return any(x.path == y.path and x.start < y.stop and y.start < x.stop for x in a for y in b)


def _own_state(states: list[Any], saved: list[list[Range]], own: list[Range], params: tree.Tree) -> Any:
    """This rank's state from those of the ranks that saved: whatever is a dict by path holds elements."""
    given = [(state, ranges) for state, ranges in zip(states, saved, strict=True) if state is not None]
    names = {tree.format_path(path) for path, _ in tree.flatten(params)}

    def chosen(nodes: list[Any]) -> Any:
        first = nodes[0]
        if isinstance(first, dict) and set(first) <= names:
            return _elements(nodes, [ranges for _, ranges in given], own)
        if hasattr(first, "_fields"):
            return type(first)(*(chosen([getattr(node, field) for node in nodes]) for field in first._fields))
        if isinstance(first, dict):
            return {key: chosen([node[key] for node in nodes]) for key in first}
        return first

    return chosen([state for state, _ in given])


def _elements(nodes: list[Any], saved: list[list[Range]], own: list[Range]) -> Pieces:
    found: Pieces = {}
    for path, start, stop in own:
        cut = []
        for pieces, ranges in zip(nodes, saved, strict=True):
            for other in ranges:
                low, high = max(start, other.start), min(stop, other.stop)
                if other.path == path and low < high:
                    cut.append(pieces[tree.format_path(path)][low - other.start : high - other.start])
        found[tree.format_path(path)] = namespace_of(*cut).concat(cut, axis=0)
    return found

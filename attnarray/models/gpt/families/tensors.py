"""The tensors of decoders: tables of modules and of paths to parameters, whose leaves follow the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnarray import tree
from attnarray.checkpoints.names import Names, Tensor

Table = Mapping[str, str | tuple[str, ...]]  # module -> path, or the paths of the parts that it concatenates
IGNORED = (
    r"h\.\d+\.attn\.(masked_)?bias", r"(.+\.)?rotary_emb\.inv_freq", r"layers\.\d+\.attention\.(masked_)?bias",
)  # fmt: skip


def decoder_names(
    model: Any, ends: Table, block: Table | Sequence[Table], *, layers: str = "layers.{}.", prefix: str = "model.",
    transposed: tuple[str, ...] = (), groups: int = 1, head: str = "lm_head",
) -> Names:  # fmt: skip
    """Return the tensors of a `GPT`.

    Parameters
    ----------
    ends, block : dict
        The modules outside the blocks, and those of each block below `layers`, or a list of those of all blocks.
        Modules whose parameters the model does not have are left out; "{}" in a module of a block stands for the
        number of each expert, in its path too.
    transposed : tuple of str
        The modules of a block whose weights are (inputs, outputs).
    groups : int
        How many groups of heads alternate in the modules with several parts.
    """
    shapes, tensors = model.shapes(), []

    def add(module: str, paths: str | tuple[str, ...], is_transposed: bool = False) -> None:
        paths = (paths,) if isinstance(paths, str) else paths
        leaves = _find(shapes, paths[0])
        for leaf in leaves:
            parts = tuple(f"{path}.{leaf}" for path in paths)
            tensors.append(
                Tensor(f"{module}.{leaf}", parts, is_transposed and leaf == "weight", groups if parts[1:] else 1)
            )

    for module, paths in ends.items():
        add(module, paths)
    blocks = [block] * model.num_layers if isinstance(block, Mapping) else block
    for n, table in enumerate(blocks):
        for module, paths in table.items():
            for e in range(model.num_experts or 0) if "{}" in module else (0,):
                own = (paths,) if isinstance(paths, str) else paths
                path = tuple(f"blocks.{n}.{path.format(e)}" for path in own)
                add(layers.format(n) + module.format(e), path, module in transposed)
    token = next(tensor.name for tensor in tensors if tensor.paths == ("token.weight",))
    copies = {f"{head}.weight": token} if model.tie_embeddings else {}
    if not model.tie_embeddings:
        add(head, "logits")
    return Names(tuple(tensors), prefix, (f"{head}.",), (), copies, IGNORED)


def _find(shapes: Any, path: str) -> tuple[str, ...]:
    """The names of the leaves at a path, if the model has it."""
    keys: tree.Path = tuple(int(key) if key.isdigit() else key for key in path.split("."))
    for key in keys:
        if isinstance(shapes, dict) and key not in shapes:
            return ()
        shapes = shapes[key]
    return tuple(shapes)

"""How relatives of BERT are published: the names of their tensors and of the entries of their config.json.

Each family is a `Published`, in a file of its own; here is what they share.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from attnarray.checkpoints.config import (
    ACTIVATIONS,
    PUBLISHED,
    Config,
    Unsupported,
    chosen,
    init_std,
    only,
    positive,
    probability,
    sizes,
)
from attnarray.checkpoints.names import Family, Names, Tensor

# Field -> entry of config.json, of BERT and most of its relatives.
ENTRIES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "types": "type_vocab_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "eps": "layer_norm_eps",
}
OPTIONS = ("activation", "dropout", "attention_dropout", "eps")  # those that are no sizes
EMBEDDINGS = {
    "token": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "type": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
}
# Below "blocks", n, and "encoder.layer", n.
BLOCK = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.hidden": "intermediate.dense",
    "feed_forward.out": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
LM_HEAD = {"mask_head.dense": "lm_head.dense", "mask_head.norm": "lm_head.layer_norm", "mask_head.bias": "lm_head.bias"}
LM_TIED = {"lm_head.decoder.weight": "embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"}
# Architecture -> what its classes are of; the first architectures have no classes.
CLASSIFIED = {
    "ForSequenceClassification": "sequences", "ForMultipleChoice": "sequences", "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "spans",
}  # fmt: skip
LABELS = {"ForMultipleChoice": 1, "ForQuestionAnswering": 2}  # where it is not a choice


def classifier(model: Any, *, sequences: str = "classifier") -> dict[str, str]:
    """Return the name of the head for classes."""
    names = {"sequences": sequences, "tokens": "classifier", "spans": "qa_outputs"}
    return {"classifier": names[model.classified]}


def classifies_sequences(model: Any) -> bool:
    return model.num_labels is not None and model.classified == "sequences"


@dataclass(frozen=True)
class Published:
    """A family: its names of types, and of the modules and single tensors of a `BERT`, by their paths here.

    Parameters
    ----------
    model_type, stem : str
        Of config.json, and the beginning of its architectures.
    modules : function
        The names of what is not in blocks, for a model.
    prefix : str
        Of names.
    heads : tuple of str
        Beginnings of names that have no prefix.
    tied : dict
        Copies of tied tensors, of the head for masked tokens.
    layer, block
        The name of block {n}, and the modules below it.
    entries : dict
        Fields and entries of config.json.
    read, write : functions
        The other fields of a config.json, and the other entries of a model.
    gelu_head : bool
        Whether the head for masked tokens has the exact GELU whatever the activation of the blocks.
    """

    model_type: str
    stem: str
    modules: Callable[[Any], Mapping[str, str]]
    prefix: str
    heads: tuple[str, ...]
    tied: Mapping[str, str]
    layer: str = "encoder.layer.{n}"
    block: Mapping[str, str] = field(default_factory=lambda: BLOCK)
    entries: Mapping[str, str] = field(default_factory=lambda: ENTRIES)
    read: Callable[[Config], dict[str, Any]] = lambda _config: {}
    write: Callable[[Any], Config] = lambda _model: {}
    gelu_head: bool = False
    renamed: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = (r"embeddings\.position_ids",)
    others: tuple[str, ...] = ()  # more architectures

    def family(self) -> Family:
        """Return the readers and writers of the family."""
        suffixes = ("Model", "ForMaskedLM", *self.others, *CLASSIFIED)
        names = tuple(f"{self.stem}{suffix}" for suffix in suffixes)
        return Family(self.model_type, names, self.fields, self.config, self.names)

    def names(self, model: Any) -> Names:
        """Return the tensors of a model."""
        name = functools.partial(self._name, self.modules(model))
        tensors = tuple(Tensor(name(path), (path,)) for path in _paths(model.shapes()))
        copies = dict(self.tied) if model.mask_head else {}
        return Names(tensors, self.prefix, self.heads, self.renamed, copies, self.ignored)

    def fields(self, config: Config, names: Iterable[str]) -> dict[str, Any]:
        """Return the fields of a model for a config.json and the tensor names of its file."""
        only(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
        only(config, quantization_config=None, compression_config=None, pruned_heads=({}, None))
        names = list(names)
        found: dict[str, Any] = sizes(config, {n: e for n, e in self.entries.items() if n not in OPTIONS}, names)
        entry = self.entries.get
        found["activation"] = chosen(config, self.entries["activation"], ACTIVATIONS, "gelu")
        found["dropout"] = probability(config, self.entries["dropout"], 0.1)
        found["attention_dropout"] = probability(config, self.entries["attention_dropout"], 0.1)
        found |= {"eps": positive(config, self.entries["eps"], 1e-12)} if entry("eps") else {}
        found |= {"init_std": init_std(config), **self.read(config)}
        if found.get("padding_token") is not None:
            found["max_seq_len"] -= found["padding_token"] + 1
        found |= self._heads(config, {name.removeprefix(self.prefix) for name in names})
        if not found["pooler"]:
            found.pop("pooler_activation", None)
        if found["mask_head"] and self.gelu_head and found["activation"] != "gelu":
            raise Unsupported(
                f"asks for {self.entries['activation']} = {config[self.entries['activation']]!r}, but only 'gelu' is "
                "supported with the head for masked tokens"
            )
        return found

    def config(self, model: Any) -> Config:
        """Return the config.json of a model."""
        values = {entry: getattr(model, name) for name, entry in self.entries.items()}
        values[self.entries["hidden_dim"]] = model.hidden_dim or 4 * model.dim
        values[self.entries["activation"]] = PUBLISHED[model.activation]
        if model.padding_token is not None:
            values[self.entries["max_seq_len"]] += model.padding_token + 1
            values["pad_token_id"] = model.padding_token
        suffix = "ForMaskedLM" if model.mask_head else "Model"
        if model.num_labels is not None:
            suffix = next(name for name, classified in CLASSIFIED.items() if classified == model.classified)
            values["id2label"] = {str(n): f"LABEL_{n}" for n in range(model.num_labels)}
            values["label2id"] = {f"LABEL_{n}": n for n in range(model.num_labels)}
        return {
            "architectures": [f"{self.stem}{suffix}"],
            "model_type": self.model_type,
            **values,
            "initializer_range": model.init_std,
            "tie_word_embeddings": True,
            **self.write(model),
        }

    def _name(self, modules: Mapping[str, str], path: str) -> str:
        """The name of the parameter at a path."""
        module, _, leaf = path.rpartition(".")
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
        own = self.block.get(found[2]) if found else modules.get(module)
        if own is None and path not in modules:
            raise ValueError(f"has a parameter {path}")
        if found:
            return f"{self.layer.format(n=found[1])}.{own}.{leaf}"
        return modules.get(path, f"{own}.{leaf}")

    def _heads(self, config: Config, names: set[str]) -> dict[str, Any]:
        """The heads that are in the file, those of classes only for their architectures."""
        listed = config.get("architectures") or [""]
        suffix = str(listed[0]).removeprefix(self.stem)
        labels = config.get("id2label")
        count = LABELS.get(suffix, len(labels) if labels else config.get("num_labels", 2))
        classified = CLASSIFIED.get(suffix)
        found = {"num_labels": count if classified else None, "classified": classified or "sequences"}
        modules = self.modules(SimpleNamespace(**found))
        if f"{modules['classifier']}.weight" not in names:
            found = {"num_labels": None, "classified": "sequences"}
            modules = self.modules(SimpleNamespace(**found))
        mask_head = f"{modules['mask_head.dense']}.weight" in names
        if mask_head and config.get("tie_word_embeddings", True) is not True:
            beginning = f"{modules['mask_head.dense'].partition('.')[0]}."
            raise Unsupported(
                "asks for tie_word_embeddings = False, but only True is supported for the head for masked tokens. "
                f'Without that head, ignore=("{beginning}",), the model can be read'
            )
        return {**found, "mask_head": mask_head, "pooler": f"{modules['pooler']}.weight" in names}


def _paths(shapes: Any, path: str = "") -> Iterator[str]:
    """The paths of all leaves."""
    if isinstance(shapes, tuple):
        yield path
        return
    for key, inner in shapes.items() if isinstance(shapes, dict) else enumerate(shapes):
        yield from _paths(inner, f"{path}.{key}" if path else str(key))

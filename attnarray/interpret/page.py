"""A page with all layers and heads of a model: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html as escaping
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attnarray import checks
from attnarray.attention.weights import innermost
from attnarray.backend import to_numpy
from attnarray.interpret.statistics import attention_statistics, num_keys, top_keys

TEMPLATE = Path(__file__).with_name("view.html")
MAX_POSITIONS = 2**16  # indices are 16 bits


class HTMLView:
    """A page as text: `save` writes it, and a notebook shows it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def save(self, path: str | Path) -> Path:
        """Write the page, and return its path."""
        path = Path(path)
        path.write_text(self.text, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        text = escaping.escape(self.text, quote=True)
        return f'<iframe srcdoc="{text}" title="Attention" style="width:100%;height:640px;border:0"></iframe>'

    def __repr__(self) -> str:
        return f"HTMLView({len(self.text):,} characters; .save(path) writes them)"


def html(
    contexts: Mapping[str, Any], tokens: Sequence[str], keys: Sequence[str] | None = None, *, batch: int = 0,
    k: int = 8, title: str = "Attention",
) -> HTMLView:  # fmt: skip
    """Return a page with the weights of all layers and heads, to look through in a browser.

    It has an overview of all heads, the tokens, and a map of the chosen head; pointing at a token shows what it attends
    to, or what attends to it. Weights below a threshold are hidden. The page holds the k largest weights of each query,
    so that thousands of tokens fit.

    Parameters
    ----------
    contexts : dict of contexts
        From `attention_contexts`, with equal numbers of queries and keys in all layers.
    tokens : sequence of str
        Labels of the queries.
    keys : sequence of str, optional
        Labels of the keys; by default those of the queries.
    batch : int
        Which sequence.
    k : int
        The number of keys that are kept for each query.
    title : str

    Returns
    -------
    HTMLView

    Raises
    ------
    ValueError
        If numbers of labels differ from those of queries or keys.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> _, ctx = model.fwd(model.init(aa.Philox(0)), np.array([[3, 1, 4]]))
    >>> view = aa.interpret.html(aa.interpret.attention_contexts(ctx), ["to", "be", "or"])
    >>> "blocks.1.attention" in view.text
    True
    """
    if not isinstance(contexts, Mapping) or not contexts:
        raise TypeError(f"`contexts` is {checks.shown(contexts)}, expected the dict that attention_contexts returns.")
    tokens, keys = list(tokens), list(tokens if keys is None else keys)
    layers = [_layer(name, innermost(ctx), tokens, keys, batch, k) for name, ctx in contexts.items()]
    data = {"title": title, "tokens": tokens, "keys": keys, "layers": layers}
    # "<" could end the script; as an escape it is the same text in JSON.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("__TITLE__", escaping.escape(title))
    return HTMLView(page.replace("__DATA__", text))


def _layer(name: str, ctx: Any, tokens: list[str], keys: list[str], batch: int, k: int) -> dict[str, Any]:
    """What the page shows of a layer: for each head the largest weights, in bytes, and means of statistics."""
    for kind, labels, count in (("tokens", tokens, ctx.q.shape[2]), ("keys", keys, num_keys(ctx))):
        if len(labels) != count:
            raise ValueError(f"`{kind}` has {len(labels)} labels, but {name} has {count} {kind}.")
    if len(keys) > MAX_POSITIONS:
        raise ValueError(f"There are {len(keys)} keys, expected at most {MAX_POSITIONS}.")
    batch = checks.whole("batch", batch, 0, ctx.q.shape[0] - 1, "an index of a sequence")
    found = top_keys(ctx, max(1, min(checks.whole("k", k, 1, 2**16, "a number of keys"), len(keys))))
    statistics = attention_statistics(ctx)
    indices, weights, entropy, distance, first = (
        _of_batch(x, ctx, batch) for x in (*found, *(field[..., None] for field in statistics))
    )
    return {
        "name": name,
        "k": indices.shape[-1],
        "indices": [_base64(each.astype("<u2")) for each in indices],
        "weights": [_base64(np.rint(255.0 * each).astype("u1")) for each in weights],
        "statistics": [
            {"entropy": float(e.mean()), "distance": float(d.mean()), "first": float(f.mean())}
            for e, d, f in zip(entropy, distance, first, strict=True)
        ],
    }


def _of_batch(values: Any, ctx: Any, batch: int) -> np.ndarray:
    """One sequence of (*batch, H, T, N), as (H, T, N)."""
    array = np.asarray(to_numpy(values))
    return array.reshape(ctx.q.shape[0], -1, *array.shape[-2:])[batch]


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")

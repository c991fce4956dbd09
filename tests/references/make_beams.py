"""Make beams.npz: beam searches of Hugging Face transformers over tables of logits.

Run with transformers 5.24, PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_beams.py`.

A model is a table: after token i, the logits of token number n are table[i] / 32 + step[n] / 1024, so that the order of
a text matters. Arrays, one row for each search: `table` (N, V, V), `step` (N, C, V) and `start` (N, B); `end`, and
`size` and `count`, the vocabulary and the most tokens of the search, whose other entries are 0; `beams`,
`length_penalty`, and `early_stopping`, an index into EARLY_STOPPING, all (N,); `tokens` (N, B, C), filled up with the
end, and `scores` (N, B).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

EARLY_STOPPING = (False, True, "never")
SEARCHES, BATCH, VOCABULARY, COUNT = 300, 2, 12, 8
NOISE = 1e-5  # of the logits; a search whose tokens it changes is left out, as float32 does not resolve it


class Table(PreTrainedModel, GenerationMixin):
    """Logits by the last token and the number of tokens."""

    config_class = PreTrainedConfig
    main_input_name = "input_ids"

    def __init__(self, table, step, end):
        super().__init__(PreTrainedConfig(vocab_size=len(table), eos_token_id=end, pad_token_id=end))
        self.table, self.added = torch.nn.Parameter(table), step

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        return {"input_ids": input_ids}

    def forward(self, input_ids, attention_mask=None, **_):
        rows = self.table[input_ids[:, -1:]] + self.added[input_ids.shape[1] - 1]
        return CausalLMOutput(logits=rows.float())


def drawn(rng):
    """One search."""
    V, count = int(rng.integers(4, VOCABULARY + 1)), int(rng.integers(2, COUNT + 1))
    end, beams = int(rng.integers(V)), int(rng.integers(2, min(5, V // 2) + 1))
    table, step = np.zeros((VOCABULARY, VOCABULARY), np.int16), np.zeros((COUNT, VOCABULARY), np.int16)
    table[:V, :V] = rng.integers(-127, 128, (V, V))
    step[:count, :V] = rng.integers(-1024, 1025, (count, V))
    step[:count, end] += rng.integers(-2048, 3072)
    penalty, early_stopping = rng.choice([1.0, 1.0, 0.0, 0.6, 2.0, -0.5]), rng.integers(len(EARLY_STOPPING))
    return {
        "table": table, "step": step, "start": rng.integers(V, size=BATCH), "end": end, "size": V, "count": count,
        "beams": beams, "length_penalty": penalty, "early_stopping": early_stopping,
    }  # fmt: skip


def searched(search, noise):
    """Tokens (B, C), padded with the end, and scores (B,); `noise` (V,) is added to all logits."""
    V = search["size"]
    table = torch.from_numpy(search["table"][:V, :V] / 32)
    step = torch.from_numpy(search["step"][:, :V] / 1024 + noise[:V])
    start = torch.from_numpy(search["start"])[:, None]
    found = Table(table, step, search["end"]).generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=search["count"], num_beams=search["beams"],
        length_penalty=float(search["length_penalty"]), early_stopping=EARLY_STOPPING[search["early_stopping"]],
        do_sample=False, use_cache=False, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    tokens = np.full((BATCH, COUNT), search["end"])
    tokens[:, : found.sequences.shape[1] - 1] = found.sequences[:, 1:].numpy()
    return tokens, found.sequences_scores.numpy().astype(np.float64)


def main():
    """Write the file, and print how many searches were left out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", type=Path, default=Path(__file__).with_name("beams.npz"))
    path, rng, kept, unstable = parser.parse_args().path, np.random.default_rng(0), [], 0
    while len(kept) < SEARCHES:
        search = drawn(rng)
        tokens, scores = searched(search, np.zeros(VOCABULARY))
        noise = NOISE * rng.standard_normal((2, VOCABULARY))
        if any(np.any(searched(search, some)[0] != tokens) for some in noise):
            unstable += 1
            continue
        kept.append({**search, "tokens": tokens, "scores": scores})
    np.savez_compressed(
        path, **{name: np.stack([np.asarray(search[name]) for search in kept]).astype(kind) for name, kind in {
            "table": np.int8, "step": np.int16, "start": np.int8, "end": np.int8, "size": np.int8, "count": np.int8,
            "beams": np.int8, "length_penalty": np.float64, "early_stopping": np.int8, "tokens": np.int8,
            "scores": np.float64,
        }.items()}
    )  # fmt: skip
    print(f"{path.name}: {len(kept)} searches, {unstable} left out as unstable, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

"""The cases that `attnarray bench` knows: the quick set and the full set."""

from __future__ import annotations

import numpy as np

from attnarray.attention.partial import Partial
from attnarray.bench.cases import BenchCase, Shapes, sdpa, triple

GROUPS = {
    "prefill": "every query sees every key",
    "causal": "a query sees itself and what came before",
    "training": "forward and backward together, as in a training step",
    "decode": "one new query per sequence against many keys",
    "tiny": "calls so small that checks and dispatch count",
    "special": "what makes other functions leave their fast path",
    "dtypes": "the call of the prefill group in other floating dtypes",
    "triples": "the primitives around attention",
}


def _targets(rng: np.random.Generator, shapes: Shapes) -> np.ndarray:
    rows, classes = shapes["logits"]
    return rng.integers(0, classes, rows)


def _indices(rng: np.random.Generator, shapes: Shapes) -> np.ndarray:
    return rng.integers(0, shapes["weight"][0], (4096,))


def _parts(rng: np.random.Generator, shapes: Shapes) -> tuple[Partial, ...]:
    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    return tuple(Partial(drawn(1, 8, 512, 64), drawn(1, 8, 512)) for _ in range(4))


PART_FLOPS = 4.0 * 8 * 512 * 256 * 64  # two products of H T S D

# Below a minute with all peers, on two cores.
QUICK: tuple[BenchCase, ...] = (
    sdpa("prefill-{S}-d{D}", "prefill", T=384),
    sdpa("prefill-{S}-d{D}", "prefill", T=512, D=128),
    sdpa("causal-{S}-d{D}", "causal", T=512, is_causal=True),
    sdpa("training-{S}-d{D}", "training", T=384, direction="both", is_causal=True),
    sdpa("decode-{S}-d{D}", "decode", B=4, Hkv=2, T=1, S=2048, is_causal=True),
    sdpa("tiny-{S}-d{D}", "tiny", H=2, T=4, D=8),
    sdpa("tiny-{S}-d{D}", "tiny", H=4, T=64, D=32),
    sdpa("tiny-training-{S}-d{D}", "tiny", H=4, T=16, D=16, direction="both", is_causal=True),
    sdpa("window-{S}-d{D}", "special", T=768, is_causal=True, window=(127, 0)),
    sdpa("bias-training-{S}-d{D}", "special", T=256, direction="both", bias=True),
    sdpa("dropout-training-{S}-d{D}", "special", T=256, direction="both", dropout_p=0.1, rng=1),
    sdpa("padded-{S}-d{D}", "special", B=4, T=256, lengths=(1.0, 0.75, 0.5, 0.25)),
    sdpa("mask-{S}-d{D}", "special", T=512, mask=True),
    sdpa("float64-{S}-d{D}", "dtypes", T=384, dtype="float64"),
    sdpa("float16-{S}-d{D}", "dtypes", T=384, dtype="float16"),
    triple("softmax", x=(4096, 512)),
    triple("layer_norm", "layer_norm-training", direction="both", x=(2048, 512), weight=(512,), bias=(512,)),
)  # fmt: skip

# (T, D) of the prefill and of the causal cases, twelve in all; every one forward, and as a training step.
PREFILL = ((384, 64), (512, 128), (1024, 64), (1024, 80), (2048, 128), (4096, 64))
CAUSAL = ((512, 64), (384, 80), (1024, 128), (2048, 64), (2048, 80), (4096, 128))

MORE: tuple[BenchCase, ...] = (
    *[sdpa("prefill-{S}-d{D}", "prefill", T=T, D=D) for T, D in PREFILL[2:]],
    *[sdpa("causal-{S}-d{D}", "causal", T=T, D=D, is_causal=True) for T, D in CAUSAL[1:]],
    *[sdpa("prefill-training-{S}-d{D}", "training", T=T, D=D, direction="both") for T, D in PREFILL],
    *[sdpa("causal-training-{S}-d{D}", "training", T=T, D=D, direction="both", is_causal=True) for T, D in CAUSAL],
    sdpa("backward-{S}-d{D}", "training", T=1024, direction="backward", is_causal=True),
    sdpa("decode-{S}-d{D}", "decode", T=1, S=1024, is_causal=True),
    sdpa("decode-{S}-d{D}", "decode", H=32, Hkv=8, T=1, S=4096, D=128, is_causal=True),
    sdpa("decode-{S}-d{D}", "decode", B=8, T=1, S=8192, is_causal=True),
    sdpa("tiny-{S}-d{D}", "tiny", B=2, H=4, T=16, D=16),
    sdpa("tiny-{S}-d{D}", "tiny", H=1, T=32, D=32),
    sdpa("window-{S}-d{D}", "special", T=8192, is_causal=True, window=(255, 0)),
    sdpa("window-training-{S}-d{D}", "special", T=2048, direction="both", is_causal=True, window=(255, 0)),
    sdpa("bias-training-{S}-d{D}", "special", T=1024, direction="both", bias=True),
    sdpa("dropout-training-{S}-d{D}", "special", T=1024, direction="both", dropout_p=0.1, rng=1),
    sdpa("wide-values-{S}-d{D}", "special", T=512, Dv=128),
    sdpa("wide-values-training-{S}-d{D}", "special", T=512, Dv=128, direction="both"),
    sdpa("softcap-{S}-d{D}", "special", T=512, softcap=20.0),
    sdpa("padded-{S}-d{D}", "special", B=4, T=1024, lengths=(1.0, 0.75, 0.5, 0.25)),
    sdpa("grouped-{S}-d{D}", "special", T=1024, Hkv=2, is_causal=True),
    sdpa("mask-{S}-d{D}", "special", T=1024, mask=True),
    sdpa("float64-training-{S}-d{D}", "dtypes", T=512, dtype="float64", direction="both"),
    sdpa("float16-training-{S}-d{D}", "dtypes", T=512, dtype="float16", direction="both"),
    triple("softmax", "softmax-training", direction="both", x=(4096, 512)),
    triple("log_softmax", x=(4096, 512)),
    triple("layer_norm", x=(4096, 1024), weight=(1024,), bias=(1024,)),
    triple("rms_norm", x=(4096, 1024), weight=(1024,)),
    triple("linear", x=(1024, 1024), weight=(4096, 1024), bias=(4096,)),
    triple("linear", "linear-training", direction="both", x=(1024, 1024), weight=(4096, 1024), bias=(4096,)),
    triple("gelu", x=(1024, 4096)),
    triple("gelu", "gelu-training", direction="both", x=(1024, 4096)),
    triple("silu", x=(1024, 4096)),
    triple("relu", x=(1024, 4096)),
    triple("tanh", x=(1024, 4096)),
    triple("sigmoid", x=(1024, 4096)),
    triple("attention_partial", flops=PART_FLOPS, query=(1, 8, 512, 64), key=(1, 8, 256, 64), value=(1, 8, 256, 64)),
    triple("merge_partials", drawn={"partials": _parts}, text="4 parts of B1 H8 T512 D64"),
    triple("embedding", "embedding-training", direction="both", drawn={"indices": _indices}, weight=(8192, 256)),
    triple("dropout", options={"p": 0.1, "rng": 1}, x=(1024, 1024)),
    triple("cross_entropy", "loss-training", direction="both", drawn={"targets": _targets}, logits=(512, 8192)),
)  # fmt: skip

# Too long for the full set: only by name (--only).
LONG: tuple[BenchCase, ...] = (sdpa("long-training-{S}-d{D}", "training", T=16384, direction="both"),)

CASES: tuple[BenchCase, ...] = tuple(sorted(QUICK + MORE + LONG, key=lambda case: list(GROUPS).index(case.group)))

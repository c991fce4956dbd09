"""Left-padded prompts, sequences that end a row, and functions of the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.models import GPT, generate, penalize_repetition, stream
from tests.support.messages import says

MODEL = GPT(11, 24, 8, 2, 2, init_std=0.5)
PARAMS = MODEL.init(aa.Philox(3), "float64")
PROMPTS = np.random.default_rng(0).integers(11, size=(3, 5))
STARTS = [0, 2, 4]


@pytest.mark.parametrize("options", [{}, {"method": "beam", "beams": 3}, {"method": "sample", "rng": 1}], ids=str)
def test_left_padded_rows_are_as_each_alone(options: dict[str, Any]) -> None:
    found = generate(MODEL, PARAMS, PROMPTS, 6, starts=STARTS, **options)
    moved = np.array([np.roll(row, -start) for row, start in zip(PROMPTS, STARTS, strict=True)])
    right = generate(MODEL, PARAMS, moved, 6, lengths=[5 - start for start in STARTS], **options)
    assert found.tolist() == right.tolist()
    if options.get("method") != "sample":  # whose numbers are those of rows
        for row, start in enumerate(STARTS):
            alone = generate(MODEL, PARAMS, PROMPTS[row : row + 1, start:], 6, **options)
            assert found[row].tolist() == alone[0].tolist()


def test_a_row_ends_with_a_sequence() -> None:
    free = generate(MODEL, PARAMS, PROMPTS, 8).tolist()
    stop = [free[0][1:3], [99]]
    found = generate(MODEL, PARAMS, PROMPTS, 8, stop=stop, end=10).tolist()
    for own, expected in zip(found, free, strict=True):
        ends = [n for n in range(2, 9) if expected[n - 2 : n] == stop[0] or expected[n - 1] == 10]
        cut = expected[: ends[0]] if ends else expected
        assert own == (cut + [10] * 8)[: len(own)]


def test_repetitions_become_less_likely() -> None:
    expected = []
    tokens = PROMPTS.copy()
    for _ in range(6):
        logits = MODEL(PARAMS, tokens)[:, -1]
        for row, own in enumerate(tokens):
            for token in set(own.tolist()):
                logits[row, token] *= 5.0 if logits[row, token] < 0 else 0.2
        expected.append(logits.argmax(-1))
        tokens = np.concatenate([tokens, expected[-1][:, None]], axis=1)
    processors = [penalize_repetition(5.0)]
    assert np.array_equal(generate(MODEL, PARAMS, PROMPTS, 6, processors=processors), np.stack(expected, axis=1))
    assert len(list(stream(MODEL, PARAMS, PROMPTS, 2, processors=processors))) == 2


def test_padding_is_no_repetition() -> None:
    given = {"processors": [penalize_repetition(5.0)]}
    found = generate(MODEL, PARAMS, PROMPTS, 6, starts=STARTS, **given)
    for row, start in enumerate(STARTS):
        assert found[row].tolist() == generate(MODEL, PARAMS, PROMPTS[row : row + 1, start:], 6, **given)[0].tolist()


def test_bad_options() -> None:
    def call(**options: Any) -> Any:
        return lambda: generate(MODEL, PARAMS, PROMPTS, 2, **options)

    says(ValueError, "`starts` and `lengths` are both given", call(starts=STARTS, lengths=[1, 2, 3]))
    says(ValueError, "`stop` is given without `end`", call(stop=[[1]]))
    says(ValueError, "`stop` is [1], expected sequences of tokens", call(stop=[1], end=3))
    says(ValueError, "`stop` is [[]], expected sequences of tokens", call(stop=[[]], end=3))
    says(ValueError, "A function of `processors` returned", call(processors=[lambda _, logits: logits[:, :3]]))
    says(ValueError, "`penalty` is 0", lambda: penalize_repetition(0))
    says(ValueError, "method='beam'", call(method="beam", stop=[[1]], end=3))
    says(ValueError, "`draft` is given with `stop`", call(draft=(MODEL, PARAMS), stop=[[1]], end=3))

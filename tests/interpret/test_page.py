"""The page of all layers and heads, in Chromium: it shows what the library computes, for thousands of tokens, too."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import interpret
from tests.support.chromium import Browser, program

WORDS = ["we", "hold", "these", "</script>", "truths", "to", "be", "self-evident"]


def contexts(T: int, layers: int = 2, heads: int = 2) -> dict[str, Any]:
    encoder = aa.models.Encoder(dim=8, num_layers=layers, num_heads=heads, init_std=0.5)
    x = np.random.default_rng(0).standard_normal((1, T, 8), np.float32)
    return interpret.attention_contexts(encoder.fwd(encoder.init(aa.Philox(0)), x, is_causal=True)[1])


FOUND = contexts(len(WORDS))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if os.name == "nt" or not program():
        pytest.skip("needs Chromium or Chrome; the variable CHROMIUM says where it is")
    with Browser(program()) as started:
        yield started


def test_the_page_is_one_file_with_all_heads(tmp_path: Path) -> None:
    view = interpret.html(FOUND, WORDS, title="A <title>")
    assert view.save(tmp_path / "view.html").read_text(encoding="utf-8") == view.text
    assert not re.findall(r'(?:src|href)="|https?://', view.text)  # nothing is loaded
    data = json.loads(view.text.split('type="application/json">')[1].split("</script>")[0])
    assert data["tokens"] == WORDS
    assert data["title"] == "A <title>"
    assert [layer["name"] for layer in data["layers"]] == list(FOUND)
    assert "A &lt;title&gt;" in view.text
    assert "srcdoc=" in view._repr_html_()
    assert "characters" in repr(view)


def test_pointing_at_a_token_shows_its_weights(browser: Browser, tmp_path: Path) -> None:
    browser.open(interpret.html(FOUND, WORDS).save(tmp_path / "view.html").as_uri())
    assert browser.run("document.body.dataset.ready") == "true"
    browser.run("document.querySelector('[data-at=\"1.1\"]').click()")
    browser.run("state.threshold = 0; highlight(5)")
    shown = browser.run("document.getElementById('list').textContent")
    weights = aa.attention_weights(FOUND["blocks.1.attention"])[0, 1, 5]
    best = int(np.argmax(weights))
    assert shown.startswith(f"{WORDS[5]} (5): {WORDS[best]} ({best}) 0.")
    found = dict(browser.run("partners(5)"))
    for key, weight in found.items():
        assert weight == pytest.approx(weights[key], abs=0.002)  # a byte
    browser.run("state.direction = 'queries'")
    for query, weight in browser.run("partners(2)"):
        assert weight == pytest.approx(aa.attention_weights(FOUND["blocks.1.attention"])[0, 1, query, 2], abs=0.002)


def test_filter_threshold_and_keys(browser: Browser, tmp_path: Path) -> None:
    browser.open(interpret.html(FOUND, WORDS).save(tmp_path / "view.html").as_uri())
    assert browser.run("document.querySelectorAll('#overview button').length") == 4
    browser.run("$('filter').value = 'blocks.1'; $('filter').oninput()")
    assert browser.run("document.querySelectorAll('#overview button').length") == 2
    browser.run("$('threshold').value = 0.5; $('threshold').oninput({ target: $('threshold') })")
    assert all(weight >= 0.5 for _, weight in browser.run("partners(6)"))
    browser.run("$('text').querySelector('span').focus()")
    browser.press("ArrowRight")
    assert browser.run("state.token") == 1


def test_two_thousand_tokens_do_not_stop_the_page(browser: Browser, tmp_path: Path) -> None:
    view = interpret.html(contexts(2000, layers=1), [str(n) for n in range(2000)])
    browser.open(view.save(tmp_path / "view.html").as_uri())
    assert browser.run("document.body.dataset.ready") == "true"
    browser.run("for (let n = 0; n < 2000; n += 100) highlight(n)")
    assert browser.run("state.token") == 1900
    assert len(view.text) < 400_000


def test_labels_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"`tokens` has 2 labels, but blocks\.0\.attention has 8 tokens"):
        interpret.html(FOUND, WORDS[:2])
    with pytest.raises(ValueError, match="`keys` has 1 labels"):
        interpret.html(FOUND, WORDS, ["a"])
    with pytest.raises(TypeError, match="attention_contexts"):
        interpret.html({}, WORDS)
    with pytest.raises(ValueError, match="`batch` is 1"):
        interpret.html(FOUND, WORDS, batch=1)

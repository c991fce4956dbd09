"""Pictures: what is drawn, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import interpret

pytest.importorskip("matplotlib")
Q, K = np.random.default_rng(0).standard_normal((1, 2, 4, 8)), np.random.default_rng(1).standard_normal((1, 2, 6, 8))
_, CTX = aa.scaled_dot_product_attention_fwd(Q, Q, Q, is_causal=True)
_, CROSS = aa.scaled_dot_product_attention_fwd(Q, K, K)
WORDS, MORE = ["a", "b", "c", "d"], ["u", "v", "w", "x", "y", "z"]


def test_a_heat_map_shows_the_weights() -> None:
    figure = interpret.plot_weights(CTX, WORDS, heads=[1])
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), aa.attention_weights(CTX)[0, 1])
    assert [label.get_text() for label in axes.get_yticklabels()] == WORDS
    assert [label.get_text() for label in axes.get_xticklabels()] == WORDS
    across = interpret.plot_weights(CROSS, WORDS, MORE).axes[0]
    assert [label.get_text() for label in across.get_xticklabels()] == MORE


def test_heads_are_means_of_statistics() -> None:
    figure = interpret.plot_heads({"one": CTX, "two": CTX})
    image = figure.axes[0].images[0].get_array()
    expected = interpret.attention_statistics(CTX).entropy[0].mean(axis=-1)
    np.testing.assert_allclose(image, [expected, expected])


def test_arcs_are_the_weights_above_the_threshold() -> None:
    figure = interpret.plot_arcs(CROSS, WORDS, MORE, head=1, threshold=0.2)
    assert len(figure.axes[0].lines) == int((aa.attention_weights(CROSS)[0, 1] >= 0.2).sum())


@pytest.mark.parametrize(
    "draw",
    [
        lambda: interpret.plot_patches(np.ones((8, 8)), np.ones(16) / 16),
        lambda: interpret.plot_patches(np.ones((8, 4, 3)), np.ones(8) / 8, grid=(4, 2)),
        lambda: interpret.plot_alignment(np.ones((5, 12)), np.ones((4, 6)) / 6, WORDS),
        lambda: interpret.plot_edges(np.eye(3)[:, :2], ([0, 1], [1, 2]), [0.2, 1.0], [0, 1, 0]),
        lambda: interpret.plot_edges(np.eye(3)[:, :2], ([0, 1], [1, 2]), [0.2, 1.0]),
    ],
)
def test_other_pictures_can_be_saved(draw: Any, tmp_path: Any) -> None:
    draw().savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: interpret.plot_weights(CTX, WORDS[:3]), "`tokens` has 3 labels, expected 4"),
        (lambda: interpret.plot_weights(CTX, heads=[2]), "A head"),
        (lambda: interpret.plot_weights(CTX, batch=1), "`batch` is 1"),
        (lambda: interpret.plot_arcs(CROSS, WORDS), "`keys` has 4 labels, expected 6"),
        (lambda: interpret.plot_patches(np.ones((8, 8)), np.ones(17)), "17 patches, expected 16"),
        (lambda: interpret.plot_patches(np.ones(8), np.ones(16)), "`image` has shape"),
        (lambda: interpret.plot_alignment(np.ones((5, 12)), np.ones((4, 5)), WORDS), "5 frames, expected 12"),
        (lambda: interpret.plot_edges(np.ones((3, 2)), ([0], [1]), [0.5, 0.5]), "one of each for every edge"),
    ],
)
def test_what_does_not_fit_is_named(draw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


def test_a_map_of_too_many_tokens_names_the_page() -> None:
    x = np.zeros((1, 1, 1025, 1))
    _, ctx = aa.scaled_dot_product_attention_fwd(x, x, x)
    with pytest.raises(ValueError, match=r"interpret\.html"):
        interpret.plot_weights(ctx)

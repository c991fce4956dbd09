"""docs/links.py, which `make docs` runs on the site."""

from __future__ import annotations

import runpy
from pathlib import Path

from tests.support.paths import ROOT

broken = runpy.run_path(str(ROOT / "docs" / "links.py"))["broken"]


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "learn").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">x</h1><img src="a b.png"><a href="learn/">y</a>', encoding="utf-8"
    )
    (tmp_path / "a b.png").touch()
    page = tmp_path / "learn" / "index.html"
    good = [
        "../index.html",
        "../index.html#top",
        "#here",
        "../a%20b.png",
        "https://example.org/x",
        "../lite/index.html",
    ]
    bad = ["../index.html#bottom", "#there", "none.html", "../none.png?v=1"]
    page.write_text('<p id="here">' + "".join(f'<a href="{link}">z</a>' for link in good), encoding="utf-8")
    assert broken(tmp_path) == []
    page.write_text('<p id="here">' + "".join(f'<a href="{link}">z</a>' for link in good + bad), encoding="utf-8")
    assert broken(tmp_path) == [f"{Path('learn/index.html')}: {link}" for link in sorted(bad)]

"""The programs of the pages on the bridges, which need the frameworks that the other pages do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
PAGES = sorted((ROOT / "docs" / "bridges").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_programs_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in (page.stem, "torch") if page.stem == "transformers" else (page.stem,):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"^```py\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert programs
    namespace: dict[str, object] = {}
    for program in programs:
        exec(compile(program, str(page), "exec"), namespace)

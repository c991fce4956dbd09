"""Check that every link within a built site leads to a file and a place in it: `python docs/links.py build/docs`."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote


class Page(HTMLParser):
    """The places of a page that links can lead to, and its links."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            elif name in {"href", "src"} and value:
                self.links.append(value)


def broken(site: Path) -> list[str]:
    """Each broken link with its page; the theme's own templates are no pages, and `make lite` adds lite/ later."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    found = []
    for path, page in pages.items():
        for link in sorted(set(page.links)):
            address, _, place = link.partition("#")
            target = (path.parent / unquote(address.partition("?")[0])).resolve() if address else path
            if re.match(r"[a-z]+:|//", link) or (site / "lite").resolve() in target.parents:
                continue
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (place and target in pages and unquote(place) not in pages[target].places):
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


if __name__ == "__main__":
    lines = broken(Path(sys.argv[1]))
    sys.exit("\n".join(["Broken links:", *lines]) if lines else 0)

"""How Sphinx builds these pages: `make docs`. The pages of the reference are written here, from the public names."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import attnarray

HERE = Path(__file__).parent
REPOSITORY = "https://github.com/attnarray/attnarray"

project = "attnarray"
author = project_copyright = "The attnarray developers"
version = release = attnarray.__version__
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.linkcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax and its fonts with the site, not from elsewhere
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["examples/*"]
default_role = "code"

# The code of the pages runs in the tests, where its output is compared.
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = False
autodoc_typehints = "none"  # the sections Parameters and Returns say more
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "pydata_sphinx_theme"
html_title = "attnarray"
html_static_path = ["_static"]
html_css_files = ["attnarray.css"]
html_show_sourcelink = False
html_theme_options = {
    "github_url": REPOSITORY,
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars: dict[str, list[str]] = {"index": [], "gradients": []}
html_context = {"default_mode": "auto"}

# Heading of the reference -> modules whose public names are below it; the first that fits.
GROUPS = {
    "Attention by other scores": ("attention.alignment", "attention.composed", "attention.positional"),
    "Sparse and hard attention": ("attention.selection", "ops.sparsemax", "ops.entmax"),
    "Images and volumes": ("attention.spatial",),
    "Approximations": ("attention.approximate",),
    "Graphs": ("attention.graph", "ops.segments"),
    "Attention": ("attention",),
    "Masks": ("masks",),
    "Positions": ("ops.positions", "ops.rotary"),
    "Layers of networks": ("ops",),
    "Gradients, kernels and array libraries": ("",),
}
MODULES = [name for name, module in attnarray._MODULES.items() if name == module]


def public_names() -> dict[str, list[str]]:
    """Heading -> the names below it."""
    found: dict[str, list[str]] = {heading: [] for heading in GROUPS}
    for name, module in {**attnarray.TRIPLES, **attnarray._MODULES}.items():
        if name not in MODULES:
            found[next(heading for heading, prefixes in GROUPS.items() if module.startswith(prefixes))].append(name)
    return found


def first_line(thing: Any) -> str:
    return escaped((inspect.getdoc(thing) or "").partition("\n")[0])


def title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n\n"


def directive(name: str) -> str:
    """What documents `attnarray.NAME`."""
    holder, _, last = f"attnarray.{name}".rpartition(".")
    thing = getattr(importlib.import_module(holder), last)
    if inspect.isclass(thing):
        options = (":members:", ":inherited-members: tuple", ":special-members: __call__")
        return "\n   ".join([f".. autoclass:: attnarray.{name}", *options]) + "\n\n"
    return f".. auto{'function' if callable(thing) else 'data'}:: attnarray.{name}\n\n"


def table(names: list[str], holder: Any, pages: str) -> str:
    """Names with what they are, and the pages behind them."""
    rows = "".join(
        f"   * - :doc:`{name} <{pages}{name}>`\n     - {first_line(getattr(holder, name))}\n" for name in names
    )
    links = "".join(f"   {pages}{name}\n" for name in names)
    return f".. list-table::\n   :widths: 30 70\n\n{rows}\n.. toctree::\n   :hidden:\n\n{links}\n"


def write_reference(app: Any) -> None:
    """One page for each public name, and one for each heading."""
    pages: dict[str, str] = {}
    for heading, names in public_names().items():
        pages[re.sub(r"\W+", "-", heading.lower())] = title(heading) + table(names, attnarray, "")
        for name in names:
            parts = [name, f"{name}_fwd", f"{name}_bwd"] if name in attnarray.TRIPLES else [name]
            pages[name] = title(name) + "".join(directive(part) for part in parts)
    for module in MODULES:
        holder = getattr(attnarray, module)
        names = sorted(name for name in holder.__all__ if not inspect.ismodule(getattr(holder, name)))
        pages[module] = title(module) + f"{first_line(holder)}\n\n" + table(names, holder, f"{module}.")
        pages |= {f"{module}.{name}": title(name) + directive(f"{module}.{name}") for name in names}
    write_pages(HERE / "reference", pages)


def write_gallery(app: Any) -> None:
    """One page for each program of docs/examples that can be run: what it says of itself, its picture, its source."""
    pages = {}
    for path in sorted((HERE / "examples").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "def main(" in text:
            first, _, rest = (ast.get_docstring(ast.parse(text)) or "").partition("\n")
            usage, _, words = rest.strip().partition("\n\n")
            picture = (
                f".. image:: ../images/{path.stem}.png\n\n" if (HERE / "images" / f"{path.stem}.png").exists() else ""
            )
            pages[path.stem] = (
                title(path.stem.replace("_", " ").capitalize())
                + f"{first}\n\n.. code-block:: sh\n\n    {usage}\n\n{words}\n\n"
                f"{picture}.. literalinclude:: ../examples/{path.name}\n   :start-at: from __future__\n"
            )
    write_pages(HERE / "gallery", pages)


def write_pages(folder: Path, pages: dict[str, str]) -> None:
    """Write what differs, so that Sphinx builds only that again, and remove what is no longer a page."""
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in set(folder.glob("*.rst")) - {folder / f"{name}.rst" for name in pages}:
        path.unlink()


def escaped(line: str) -> str:
    """`*batch`, `*size` and `**options` of a docstring are no emphasis, `name-*` neither; "H." is no list."""
    line = re.sub(r"^( *)(?=[A-Z]\.$)", r"\1\\", line)
    starred = r"(?<!\*)\*{1,2}(?=(batch|size|other axes|options|args|kwargs)\b)|(?<=[-_])\*"
    return re.sub(starred, lambda found: found[0].replace("*", r"\*"), line)


def escape_stars(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Escape the lines of a docstring, after numpydoc; code stays as it is."""
    lines[:] = [line if line.lstrip().startswith((">>>", "...")) else escaped(line) for line in lines]


def class_signature(app: Any, what: str, name: str, thing: Any, options: Any, signature: str, returns: str) -> Any:
    """The fields of a layer or a model; Sphinx sees only `__new__`, which explains wrong names."""
    if what != "class" or not dataclasses.is_dataclass(thing):
        return None
    fields = inspect.signature(thing)
    plain = [field.replace(annotation=inspect.Parameter.empty) for field in fields.parameters.values()]
    return str(fields.replace(parameters=plain, return_annotation=inspect.Signature.empty)), returns


def outside_links(app: Any, name: str, source: list[str]) -> None:
    """Links to files that are no pages lead to the repository."""

    def replaced(match: re.Match[str]) -> str:
        path = (HERE / name).parent / match[1]
        if re.match(r"[a-z]+:|#", match[1]) or (
            path.suffix in {".md", ".png", ".svg", ".html"} and HERE in path.resolve().parents
        ):
            return match[0]
        return f"]({REPOSITORY}/blob/main/{path.resolve().relative_to(HERE.parent).as_posix()})"

    source[0] = re.sub(r"\]\(([^)\s]+)\)", replaced, source[0])


def link_notebook(app: Any, name: str, source: list[str]) -> None:
    """Pages of docs/learn that derive something have a notebook; the link is below their question."""
    if "\n**Question.**" in source[0]:
        link = f'<a class="notebook" href="../notebooks/{Path(name).name}.ipynb" download>This page as a notebook</a>'
        source[0] = re.sub(r"(\n\*\*Question\.\*\* (?:.+\n)+)", rf"\1\n{link}\n", source[0], count=1)


def copy_files(app: Any, error: Exception | None) -> None:
    """What is no page of Sphinx: the page that shows gradients flow, as it is, and notebooks."""
    if app.builder.format == "html" and error is None:
        shutil.copytree(HERE / "flow", Path(app.outdir) / "flow", dirs_exist_ok=True)
        runpy.run_path(str(HERE / "notebooks.py"))["write"](Path(app.outdir) / "notebooks")


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """The source of a public name, in the repository."""
    thing: Any = importlib.import_module(info["module"])
    try:
        for part in info["fullname"].split("."):
            thing = getattr(thing, part)
        thing = inspect.unwrap(thing)
        lines, first = inspect.getsourcelines(thing)
        path = Path(inspect.getsourcefile(thing) or "").resolve().relative_to(HERE.parent)
    except (AttributeError, TypeError, OSError, ValueError):
        return None
    return f"{REPOSITORY}/blob/main/{path.as_posix()}#L{first}-L{first + len(lines) - 1}"


def setup(app: Any) -> None:
    app.connect("builder-inited", write_reference)
    app.connect("builder-inited", write_gallery)
    app.connect("source-read", outside_links)
    app.connect("source-read", link_notebook)
    app.connect("build-finished", copy_files)
    app.connect("autodoc-process-signature", class_signature)
    app.connect("autodoc-process-docstring", escape_stars, priority=900)

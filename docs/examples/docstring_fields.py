"""The docstrings of Python's own library as texts with one field each, in three sets, and their words as numbers."""

from __future__ import annotations

import ast
import collections
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

FIELDS = {
    "Numbers and dates": "_pydatetime _pydecimal calendar datetime fractions numbers random statistics zoneinfo",
    "Files": "_pyio bz2 codecs configparser csv filecmp fileinput fnmatch genericpath glob gzip io lzma netrc ntpath "
    "os pathlib pickle plistlib posixpath shelve shutil tarfile tempfile zipapp zipfile",
    "Internet": "base64 email ftplib html http imaplib ipaddress json mailbox mimetypes poplib smtplib socket "
    "socketserver ssl urllib uuid webbrowser wsgiref xml xmlrpc",
    "Concurrency": "_threading_local asyncio concurrent contextvars multiprocessing queue sched selectors subprocess "
    "threading",
    "Windows, drawing": "tkinter turtle turtledemo",
    "Developer tools": "ast bdb cProfile cmd code codeop compileall dis doctest importlib inspect linecache "
    "modulefinder opcode pdb pickletools pkgutil profile pstats py_compile pyclbr pydoc runpy symtable tabnanny timeit "
    "tokenize trace traceback tracemalloc typing unittest venv warnings",
}
MODULES = {module: n for n, modules in enumerate(FIELDS.values()) for module in modules.split()}
NAMES = tuple(FIELDS)
SHORTEST, LONGEST = 4, 64  # words
PAD, MASK, UNKNOWN = range(3)


class Text(NamedTuple):
    words: tuple[str, ...]
    field: int


class Rows(NamedTuple):
    """Texts as numbers: tokens (N, LONGEST), lengths (N,) and fields (N,)."""

    tokens: np.ndarray
    lengths: np.ndarray
    fields: np.ndarray


def tokenize(text: str) -> tuple[str, ...]:
    """Lower-case words, those of a name such as "getHostName" or "host_name" apart; no names of modules."""
    apart = re.sub(r"([a-z])([A-Z])", r"\1 \2", text)
    return tuple(word for word in re.findall(r"[a-z]+", apart.lower()) if word not in sys.stdlib_module_names)


def docstrings() -> Iterator[tuple[str, str]]:
    """The module and the text of every docstring of the standard library; nothing is imported or run."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        module = parts[0].removesuffix(".py")
        if module in MODULES and not {"test", "tests"} & set(parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield module, ast.get_docstring(node) or ""


def texts() -> list[Text]:
    """Each text once, with its field."""
    found: dict[tuple[str, ...], set[int]] = {}
    for module, text in docstrings():
        words = tokenize(text)[:LONGEST]
        if len(words) >= SHORTEST:
            found.setdefault(words, set()).add(MODULES[module])
    return [Text(words, of.pop()) for words, of in found.items() if len(of) == 1]


def split(found: list[Text]) -> tuple[list[Text], list[Text], list[Text]]:
    """Training, validation and test: 70, 10 and 20 %."""
    hashes = [zlib.crc32(" ".join(text.words).encode()) % 10 for text in found]
    bounds = ((0, 7), (7, 8), (8, 10))
    train, choose, test = (
        [text for text, value in zip(found, hashes, strict=True) if first <= value < past] for first, past in bounds
    )
    return train, choose, test


def vocabulary(train: list[Text]) -> dict[str, int]:
    """The words of at least two training texts."""
    counts = collections.Counter(word for text in train for word in set(text.words))
    kept = sorted(word for word, count in counts.items() if count > 1)
    return {word: n for n, word in enumerate(kept, UNKNOWN + 1)}


def encode(found: list[Text], numbers: dict[str, int]) -> Rows:
    tokens = np.full((len(found), LONGEST), PAD)
    for row, text in zip(tokens, found, strict=True):
        row[: len(text.words)] = [numbers.get(word, UNKNOWN) for word in text.words]
    lengths = np.array([len(text.words) for text in found])
    return Rows(tokens, lengths, np.array([text.field for text in found]))

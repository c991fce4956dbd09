"""The tables of `attnarray info`."""

from __future__ import annotations

from typing import Any

from attnarray.console import FAINT, GOOD, print_line, print_table
from attnarray.tables import Cell

NAMES = {"attnarray": "attnarray", "python": "Python", "numpy": "NumPy", "blas": "BLAS", "numba": "Numba"}
READY = Cell("ready", GOOD)


def show(facts: dict[str, Any]) -> None:
    """Print the machine first, then backends and kernels, with each reason for something missing only once."""
    print_table("Machine", ["", ""], [[name, text] for name, text in _machine(facts)])
    backends = [
        [
            b["name"],
            READY if b["available"] else Cell("no", FAINT),
            b["version"],
            b["device"] or b["reason"],
        ]
        for b in facts["backends"]
    ]
    print_table("Backends (array libraries)", ["name", "", "version", "device, or why not"], backends)
    precompiled = not str(facts["here"].get("precompiled kernels", "none")).startswith("none")
    _show_kernels(facts["kernels"], {"numba": "compiled"} if precompiled else {})
    if facts["tensor core tiles"]:
        tiles = [[str(value) for value in row.values()] for row in facts["tensor core tiles"]]
        columns = ["kernel", "calls", "bytes", "dim up to", "rows of a block by rows of a tile"]
        print_table("Attention on tensor cores", columns, tiles)


def _machine(facts: dict[str, Any]) -> list[tuple[str, str]]:
    machine, here = facts["machine"], facts["here"]
    memory = "not known" if machine["memory"] is None else f"{machine['memory'] / 2**30:.1f} GiB"
    quota = f" (the container's quota is {machine['quota of cores']:g})" if machine["quota of cores"] else ""
    return [
        ("CPU", machine["cpu"]),
        ("cores", f"{machine['usable cores']} usable of {machine['cores']}{quota}"),
        ("memory", memory),
        *(("GPU", gpu) for gpu in machine["gpus"]),
        *((NAMES.get(name, name), str(value)) for name, value in here.items()),
    ]


def _show_kernels(kernels: list[dict[str, str]], titles: dict[str, str]) -> None:
    """A row for each function and a column for each available kernel backend; for the others the reason."""
    reasons: dict[str, set[str]] = {}
    for kernel in kernels:
        reasons.setdefault(kernel["backend"], set()).add(kernel["reason"])
    missing = {backend: next(iter(found)) for backend, found in reasons.items() if len(found) == 1 and "" not in found}
    present = [backend for backend in reasons if backend not in missing]
    rows: dict[str, dict[str, Cell]] = {}
    for kernel in kernels:
        if kernel["backend"] in present:
            cell = Cell(f"no: {kernel['reason']}", FAINT) if kernel["reason"] else READY
            rows.setdefault(kernel["function"], {})[kernel["backend"]] = cell
    if rows:
        table: list[list[str | Cell]] = [
            [name, *(row.get(backend, Cell("none", FAINT)) for backend in present)] for name, row in rows.items()
        ]
        print_table("Kernels", ["function", *(titles.get(backend, backend) for backend in present)], table)
    for backend, reason in missing.items():
        count = sum(kernel["backend"] == backend for kernel in kernels)
        print_line(f"None of the {count} {backend} kernels can be used: {reason}.")

"""The tables of `attnarray check`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from attnarray.check import GradientResult, KernelResult, Results
from attnarray.console import BAD, FAINT, GOOD, print_line, print_table
from attnarray.tables import Cell

Row = list[str | Cell]


def show(results: Results, backends: Sequence[str]) -> None:
    """Print one table of gradients and one of kernels per backend, then wrong results, then one line of totals."""
    for backend in backends:
        gradients, kernels = results.only(backend)
        _show_gradients(backend, gradients)
        if kernels:
            _show_kernels(backend, kernels)
    for result in results.wrong:
        print_line(f"WRONG {result}")
    entries = sum(result.entries for result in results.gradients)
    cases = len({(result.function, result.case) for result in results.gradients})
    functions = len({result.function for result in results.gradients})
    print_line(
        f"{entries} gradient entries in {cases} cases of {functions} functions; {len(results.wrong)} results are wrong."
    )


def _show_gradients(backend: str, results: Sequence[GradientResult]) -> None:
    """A row for each input; a column of largest errors for array code and for each kind of kernel."""
    by_input: dict[tuple[str, str], list[GradientResult]] = defaultdict(list)
    for result in results:
        by_input[result.function, result.input.partition(".")[0]].append(result)
    kinds = sorted({result.kernels for result in results}, key=lambda kind: (kind != "reference", kind))
    rows: list[Row] = []
    last = ""
    for (function, name), group in by_input.items():
        worst = max(result.error for result in group)
        errors: Row = []
        for kind in kinds:
            found = [result.error for result in group if result.kernels == kind]
            errors.append(f"{max(found):.0e}" if found else Cell("same", FAINT))
        ok = all(result.ok for result in group)
        rows.append([
            function if function != last else "", name, str(len({result.case for result in group})),
            str(sum(result.entries for result in group)), *errors, _digits(worst, ok), _verdict(ok),
        ])  # fmt: skip
        last = function
    names = ["array code" if kind == "reference" else kind for kind in kinds]
    print_table(
        f"Gradients on {backend}: largest error against central differences in float64",
        ["function", "input", "cases", "entries", *names, "digits that agree", ""],
        rows,
        right=range(2, 4 + len(kinds)),
        spare=[4 + len(kinds)],
    )


def _show_kernels(backend: str, results: Sequence[KernelResult]) -> None:
    groups: dict[tuple[str, str, str], list[KernelResult]] = defaultdict(list)
    for result in results:
        groups[result.function, result.kernels, result.dtype].append(result)
    rows: list[Row] = []
    for key, group in groups.items():
        errors = max(result.error for result in group), max(result.reference_error for result in group)
        verdict = _verdict(all(result.ok for result in group))
        rows.append([*key, str(len(group)), *(f"{error:.0e}" for error in errors), verdict])
    print_table(
        f"Kernels on {backend}: largest error of outputs and gradients against array code in float64",
        ["function", "kernels", "dtype", "results", "kernel", "array code", ""],
        rows,
        right=range(3, 6),
    )


def _digits(error: float, ok: bool) -> Cell:
    """A bar with one block for each decimal digit on which gradient and differences agree."""
    digits = sum(error < 10.0**-n for n in range(1, 16))
    return Cell("\N{FULL BLOCK}" * digits + "\N{MIDDLE DOT}" * (15 - digits), GOOD if ok else BAD)


def _verdict(ok: bool) -> Cell:
    return Cell("ok", GOOD) if ok else Cell("WRONG", BAD)

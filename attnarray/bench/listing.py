"""`attnarray bench --list`: the cases and the peers."""

from __future__ import annotations

from attnarray.bench.catalog import CASES, GROUPS, LONG, QUICK
from attnarray.bench.peers import PEERS
from attnarray.console import FAINT, GOOD, print_table
from attnarray.tables import Cell


def show() -> None:
    """Print all cases by group, and all peers with the reason if one cannot be used here."""
    sets = {**{case.name: Cell("full", FAINT) for case in CASES}, **{case.name: Cell("quick", GOOD) for case in QUICK}}
    sets |= {case.name: Cell("by name", FAINT) for case in LONG}
    rows: list[list[str | Cell]] = []
    for group in GROUPS:
        for n, case in enumerate(case for case in CASES if case.group == group):
            rows.append([group if n == 0 else "", case.name, sets[case.name], case.direction, case.dtype, case.text])
    print_table("Cases", ["group", "case", "set", "direction", "dtype", "sizes"], rows)
    print_table("Groups", ["group", ""], [[name, about] for name, about in GROUPS.items()])
    peers: list[list[str | Cell]] = []
    for name, peer in PEERS.items():
        reason = peer.missing()
        peers.append([name, Cell("no", FAINT) if reason else Cell("ready", GOOD), peer.what, reason])
    print_table("Peers", ["peer", "", "what", "why not"], peers)

"""`attnarray bench --list`: the cases and the peers."""

from __future__ import annotations

from attnarray.bench.catalog import CASES, GROUPS, QUICK
from attnarray.bench.peers import PEERS
from attnarray.console import FAINT, GOOD, Cell, print_table


def show() -> None:
    """Print all cases by group, and all peers with the reason if one cannot be used here."""
    quick = {case.name for case in QUICK}
    rows: list[list[str | Cell]] = []
    for group in GROUPS:
        for n, case in enumerate(case for case in CASES if case.group == group):
            mark = Cell("quick", GOOD) if case.name in quick else Cell("full", FAINT)
            rows.append([group if n == 0 else "", case.name, mark, case.direction, case.dtype, case.text])
    print_table("Cases", ["group", "case", "set", "direction", "dtype", "sizes"], rows)
    print_table("Groups", ["group", ""], [[name, about] for name, about in GROUPS.items()])
    peers: list[list[str | Cell]] = []
    for name, peer in PEERS.items():
        reason = peer.missing()
        peers.append([name, Cell("no", FAINT) if reason else Cell("ready", GOOD), peer.what, reason])
    print_table("Peers", ["peer", "", "what", "why not"], peers)

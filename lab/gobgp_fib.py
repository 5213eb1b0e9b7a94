"""GoBGP's routes into the kernel of this namespace: `python -m lab.gobgp_fib TARGET`.

    gobgp monitor global rib -j ── a line a prefix: all paths in use, or that they are withdrawn ──> ip -batch

What the monitor prints first is all there is; each later line is a prefix's whole new state, so lines can be taken one
by one. Routes have the kernel's protocol `bgp` (186). They stay when this ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from core.addr import Address

REACHES = frozenset({3, 14})
"""Types of the attributes that hold a next hop: NEXT_HOP and MP_REACH_NLRI."""


def next_hops(paths: Iterable[Mapping[str, Any]]) -> tuple[Address, ...]:
    """Where the paths of one prefix, as gobgp prints them, lead; none of its own or of what is withdrawn."""
    found = [
        ip_address(attribute["nexthop"])
        for path in paths
        if not path.get("withdrawal")
        for attribute in path["attrs"]
        if attribute["type"] in REACHES
    ]
    return tuple(dict.fromkeys(hop for hop in found if not hop.is_unspecified))


def lines(event: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """What `ip` has to be told after one line of the monitor."""
    by_prefix: dict[str, list[Mapping[str, Any]]] = {}
    for path in event:
        by_prefix.setdefault(path["nlri"]["prefix"], []).append(path)
    for prefix, paths in by_prefix.items():
        hops = next_hops(paths)
        if hops:
            yield f"route replace {prefix} proto bgp{''.join(f' nexthop via {hop}' for hop in hops)}"
        elif any(path.get("withdrawal") for path in paths):
            yield f"route del {prefix} proto bgp"


def main(target: str) -> int:
    """Follow until gobgpd ends."""
    argv = ["gobgp", "--target", target, "monitor", "global", "rib", "-j"]
    with (
        subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as monitor,
        subprocess.Popen(["ip", "-force", "-batch", "-"], stdin=subprocess.PIPE, text=True) as kernel,
    ):
        assert monitor.stdout is not None
        assert kernel.stdin is not None
        for line in monitor.stdout:
            kernel.stdin.writelines(f"{each}\n" for each in lines(json.loads(line)))
            kernel.stdin.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

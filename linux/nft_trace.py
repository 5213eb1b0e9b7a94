"""Watching packets go through the tables of nftables, whoever's they are: the kernel's own tracing, and nothing else.

    table inet muslin-trace-PID      marks what is to be watched at the very beginning of its way, and decides nothing
    NFNLGRP_NFTRACE                  tells each rule that decided something for a marked packet, in every table

The table belongs to our netlink socket (`flags owner`): nobody else can change it, and the kernel removes it when this
process ends, however it ends.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from core.addr import Address
from linux.libnftables import Nft
from linux.netlink import NETLINK_NETFILTER, Attributes, Netlink, attributes

TRACE_TABLE: Final = "muslin-trace-"

_GROUP: Final = 9  # NFNLGRP_NFTRACE
_TRACE: Final = 10 << 8 | 17  # NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID = 1, 2, 3, 4, 5, 6
_NETWORK, _TRANSPORT, _MARK, _POLICY = 8, 9, 14, 16
_FAMILIES: Final = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
_TYPES: Final = {1: "policy", 2: "return", 3: "rule"}
_VERDICTS: Final = {
    0: "drop",
    1: "accept",
    2: "stolen",
    3: "queue",
    -1: "continue",
    -2: "break",
    -3: "jump",
    -4: "goto",
    -5: "return",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One rule (by its handle), end of a chain, or policy of a base chain, and its verdict as nft spells it.

    `mark` is the packet's when the rule decided.
    """

    family: str
    table: str
    chain: str
    handle: int
    kind: str
    verdict: str
    target: str = ""
    mark: int = 0

    def __str__(self) -> str:
        where = f"table {self.family} {self.table}, chain {self.chain}"
        return f"{where}: {self.verdict}{' ' + self.target if self.target else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A packet and its way through the tables, in order. Ports are 0 where the protocol has none."""

    id: int
    source: Address
    destination: Address
    protocol: int
    sport: int
    dport: int
    steps: tuple[Step, ...]

    @property
    def dropped(self) -> Step | None:
        """The step that ended it; None when it went on."""
        return next((step for step in self.steps if step.verdict == "drop"), None)


class Watch:
    """Watches, in the network namespace of the thread that makes it, packets for which one of `matches` holds.

    Each is the text of an nft rule without its verdict. Raises `NftRefused` where nft does not take them.
    """

    def __init__(self, matches: Sequence[str]) -> None:
        self.table = f"{TRACE_TABLE}{os.getpid()}"
        self._heard: list[tuple[Attributes, Step]] = []
        self._events = Netlink(NETLINK_NETFILTER, groups=(_GROUP,))
        try:
            self._nft = Nft()
        except BaseException:
            self._events.close()
            raise
        rules = "".join(f"{match} meta nftrace set 1;" for match in matches)
        hooks = "".join(
            f"chain {hook} {{ type filter hook {hook} priority -500; {rules} }};" for hook in ("prerouting", "output")
        )
        try:
            self._nft.run(f"add table inet {self.table} {{ flags owner; {hooks} }}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop: the table goes with the socket that owns it."""
        self._nft.close()
        self._events.close()

    def packets(self) -> list[Traced]:
        """The packets heard of so far, in the order in which they came. Does not wait."""
        self._heard += (step for step in self._steps() if step[1].table != self.table)
        return fold(self._heard)

    def _steps(self) -> Iterator[tuple[Attributes, Step]]:
        for kind, _, _, data in self._events.notifications():
            if kind == _TRACE:
                parts = attributes(data, 4)
                yield parts, _step(data[0], parts)


def _step(family: int, parts: Attributes) -> Step:
    verdict = attributes(parts.get(_VERDICT, b""))
    code = int.from_bytes(verdict.get(1, b""), "big", signed=True)
    if _VERDICT not in parts:
        (code,) = struct.unpack("!i", parts.get(_POLICY, b"\0\0\0\1"))
    return Step(
        family=_FAMILIES.get(family, str(family)),
        table=_text(parts.get(_TABLE, b"")),
        chain=_text(parts.get(_CHAIN, b"")),
        handle=int.from_bytes(parts.get(_HANDLE, b""), "big"),
        kind=_TYPES.get(int.from_bytes(parts.get(_TYPE, b""), "big"), ""),
        verdict=_VERDICTS.get(code if code < 0 else code & 0xFF, str(code)),
        target=_text(verdict.get(2, b"")),
        mark=int.from_bytes(parts.get(_MARK, b""), "big"),
    )


def fold(steps: Iterable[tuple[Attributes, Step]]) -> list[Traced]:
    """Packets from their steps, which come in order but mixed. One whose headers were never told is left out."""
    headers: dict[int, tuple[bytes, bytes]] = {}
    ways: dict[int, list[Step]] = {}
    for parts, step in steps:
        number = int.from_bytes(parts.get(_ID, b""), "big")
        ways.setdefault(number, []).append(step)
        if _NETWORK in parts and number not in headers:
            headers[number] = parts[_NETWORK], parts.get(_TRANSPORT, b"")
    return [_traced(number, *headers[number], tuple(way)) for number, way in ways.items() if number in headers]


def _traced(number: int, network: bytes, transport: bytes, way: tuple[Step, ...]) -> Traced:
    source: Address
    destination: Address
    if network[0] >> 4 == 4:
        source, destination, protocol = IPv4Address(network[12:16]), IPv4Address(network[16:20]), network[9]
    else:
        source, destination, protocol = IPv6Address(network[8:24]), IPv6Address(network[24:40]), network[6]
    ported = protocol in (6, 17, 33, 132, 136)
    return Traced(
        id=number,
        source=source,
        destination=destination,
        protocol=protocol,
        sport=int.from_bytes(transport[0:2], "big") if ported else 0,
        dport=int.from_bytes(transport[2:4], "big") if ported else 0,
        steps=way,
    )


def rule_text(step: Step) -> str:
    """The rule of a step as nft prints it; "" when it cannot be told (any more)."""
    argv = ["nft", "-a", "list", "chain", step.family, step.table, step.chain]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(rf"^\s*(.*) # handle {step.handle}$", done.stdout, re.MULTILINE)
    return found[1] if found and step.kind == "rule" else ""


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")

"""decisions and denied: what policy decides on the node where the command runs, as the kernel counts and tells it.

Both ask the kernel alone: they work while no agent runs and the datastore is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli import options, terminal
from cli.render import Table
from core import clock, values
from core.errors import NotFound
from core.names import NFT_TABLE

if TYPE_CHECKING:
    from linux.nflog import Logged
    from linux.nft_counters import Counted
    from policy.tally import Tally

AGAIN_S: Final = 1.0
"""Seconds between two showings of `--watch`."""

_HEAD: Final = ("VERDICT", "DIRECTION", "TIER", "POLICY", "RULE", "PACKETS", "BYTES")

ForOption = Annotated[
    float | None, typer.Option("--for", help="End after so many seconds.  [default: until interrupted]", min=0)
]


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.command("decisions")(decisions)
    app.command("denied")(denied)


def decisions(
    staged: Annotated[
        bool, typer.Option("--staged", help="What staged policies would have decided, had they been in force.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again every second.")] = False,
    seconds: ForOption = None,
    output: options.ResultOption = options.ResultFormat.TEXT,
) -> None:
    """This node's decisions by verdict, tier, policy and rule, counted in first packets of flows."""
    _only_watching(seconds, watch=watch)
    _show(lambda each: each.staged is staged, watch=watch, seconds=seconds, output=output)


def denied(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show each denied packet as it is dropped.")] = False,
    seconds: ForOption = None,
    output: options.ResultOption = options.ResultFormat.TEXT,
) -> None:
    """What this node denies, by tier, policy and rule; with --watch, packet by packet (at most 100 a second)."""
    _only_watching(seconds, watch=watch)
    if watch:
        with contextlib.suppress(TimeoutError):
            asyncio.run(_watch(seconds, output))
        return
    _show(lambda each: each.verdict == "Deny" and not each.staged, watch=False, seconds=None, output=output)


def _only_watching(seconds: float | None, *, watch: bool) -> None:
    if seconds is not None and not watch:
        raise typer.BadParameter("ends --watch, which is not asked for", param_hint="--for")


def _show(wanted: Callable[[Tally], bool], *, watch: bool, seconds: float | None, output: options.ResultFormat) -> None:
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        rows = [row for row in _rows() if wanted(row.tally)]
        if watch:
            terminal.clear()
        if output is options.ResultFormat.JSON:
            terminal.show_json({"decisions": [row.document() for row in rows]})
        else:
            terminal.show(Table(head=_HEAD, rows=tuple(row.cells() for row in rows)))
        if not watch or (end is not None and time.monotonic() + AGAIN_S > end):
            return
        time.sleep(AGAIN_S)


@dataclass(frozen=True, slots=True)
class _Row:
    """One counter, and what it counts."""

    tally: Tally
    counted: Counted

    def cells(self) -> tuple[str, ...]:
        said = self.tally
        direction = _direction(said)
        policy = said.policy or said.why
        rule = said.rule or ("" if said.policy or not said.tier else "-")
        return (
            said.verdict,
            direction,
            said.tier,
            policy,
            rule,
            str(self.counted.packets),
            str(self.counted.bytes),
        )

    def document(self) -> dict[str, Any]:
        return {**_document(self.tally), "packets": self.counted.packets, "bytes": self.counted.bytes}


def _direction(said: Tally) -> str:
    if said.direction is None:
        return ""
    return said.direction if said.plane == "workload" else f"{said.plane} {said.direction}"


def _document(said: Tally) -> dict[str, Any]:
    return {
        "verdict": said.verdict,
        "plane": said.plane,
        "direction": said.direction,
        "tier": said.tier,
        "policy": said.policy,
        "rule": int(said.rule) if said.rule else None,
        "reason": said.why,
        "staged": said.staged,
    }


def _rows() -> list[_Row]:
    """Every counter of this node's, the busiest first."""
    from linux.nft_counters import read_counters
    from linux.rights import require_net_admin
    from policy.tally import tally

    require_net_admin()
    found = [_Row(tally(name), counted) for name, counted in read_counters().items()]
    if not found:
        raise NotFound(f"there is no table inet {NFT_TABLE} here: muslin does not run on this host")
    return sorted(found, key=lambda row: (-row.counted.packets, row.tally.rule_name, row.tally.verdict))


async def _watch(seconds: float | None, output: options.ResultFormat) -> None:
    from linux.nflog import Lost, logged
    from linux.rights import require_net_admin
    from policy.outcomes import DENIED_GROUP

    require_net_admin()
    names = Names()
    if not names.known:
        raise NotFound(f"there is no table inet {NFT_TABLE} here: muslin does not run on this host")
    async with asyncio.timeout(seconds), contextlib.aclosing(logged(DENIED_GROUP)) as packets:
        terminal.tell("watching what is denied here")
        async for packet in packets:
            if isinstance(packet, Lost):
                terminal.tell("some denied packets were not told: there were too many")
            elif output is options.ResultFormat.JSON:
                print(json.dumps(_event(packet, names.of(packet.mark))), flush=True)
            else:
                terminal.show_lines([_line(packet, names.of(packet.mark))])


class Names:
    """What the marks of denied packets mean: the kernel's own map, read again when a mark is new."""

    def __init__(self) -> None:
        self.known: Mapping[int, str] = dict(_counters())

    def of(self, mark: int) -> Tally:
        """What decided."""
        from core.names import MARK_MASK
        from policy.tally import tally

        number = mark & MARK_MASK
        if number not in self.known:
            self.known = dict(_counters())
        return tally(self.known.get(number, "deny/changed-meanwhile"))


def _counters() -> Iterator[tuple[int, str]]:
    from linux.libnftables import Nft, NftRefused
    from policy.outcomes import REASONS

    nft = Nft()
    try:
        listed = json.loads(nft.ask(f"list map inet {NFT_TABLE} {REASONS}"))["nftables"]
    except NftRefused:
        return
    finally:
        nft.close()
    for entry in listed:
        yield from ((int(mark), str(name)) for mark, name in entry.get("map", {}).get("elem", ()))


def _line(packet: Logged, said: Tally) -> str:
    way = f"{packet.inbound or 'this host'} -> {packet.outbound or 'this host'}"
    ends = f"{_end(packet.source, packet.sport)} -> {_end(packet.destination, packet.dport)}"
    what = values.protocol_name(packet.protocol)
    what += f" type {packet.icmp[0]} code {packet.icmp[1]}" if packet.icmp else ""
    return f"{clock.now()}  {what}  {ends}  {way}  {_direction(said)}: {said.rule_name}"


def _end(address: object, port: int | None) -> str:
    text = f"[{address}]" if port is not None and ":" in str(address) else str(address)
    return text if port is None else f"{text}:{port}"


def _event(packet: Logged, said: Tally) -> dict[str, Any]:
    return {
        "time": clock.now(),
        "source": str(packet.source),
        "destination": str(packet.destination),
        "protocol": values.protocol_name(packet.protocol),
        "sourcePort": packet.sport,
        "destinationPort": packet.dport,
        "icmp": {"type": packet.icmp[0], "code": packet.icmp[1]} if packet.icmp else None,
        "in": packet.inbound,
        "out": packet.outbound,
        **_document(said),
    }

"""ExaBGP's API, both directions, without any I/O: commands to text, its lines to events. Every difference between
versions of ExaBGP ends here; this is 5.0.15's.

    we write    neighbor 10.0.0.1 announce attributes next-hop self nlri 10.1.0.0/26 10.1.0.64/26
    it answers  done | error                 one a command, yet errors found early overtake: so one at a time
    it tells    one JSON object a line       open, up, down, update, end-of-rib
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Final, TypeAlias

from bgp.model import Attributes, Origin, Path
from core.addr import Address, Family, Network

BATCH: Final = 500
"""Prefixes to one command; ExaBGP refuses a line of more than a megabyte."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell `peer` of `prefixes`, all with the same attributes."""

    peer: Address
    attributes: Attributes
    prefixes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take `prefixes` back from `peer`."""

    peer: Address
    prefixes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class SendEndOfRib:
    """Tell `peer` that it has been told everything: it may drop what it kept from before we restarted."""

    peer: Address
    family: Family


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask for a sign of life."""


Command: TypeAlias = Announce | Withdraw | SendEndOfRib | Ping


@dataclass(frozen=True, slots=True)
class PeerOpen:
    """The peer's OPEN: it keeps forwarding `preserved` families for `restart_s` seconds while it restarts."""

    peer: Address
    restart_s: int
    preserved: frozenset[Family]


@dataclass(frozen=True, slots=True)
class PeerUp:
    """The session is established; updates follow."""

    peer: Address


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The session is gone. `notified` says that a NOTIFICATION ended it: then nothing is kept (RFC 4724, 4)."""

    peer: Address
    reason: str
    notified: bool


@dataclass(frozen=True, slots=True)
class Update:
    """One UPDATE of a peer; withdrawals come before announcements."""

    peer: Address
    announced: tuple[tuple[Network, Path], ...] = ()
    withdrawn: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class EndOfRib:
    """The peer has told everything it knows."""

    peer: Address


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a command."""

    ok: bool


@dataclass(frozen=True, slots=True)
class Other:
    """A line that says nothing to us."""

    text: str


PeerEvent: TypeAlias = PeerOpen | PeerUp | PeerDown | Update | EndOfRib
Event: TypeAlias = PeerEvent | Ack | Other


def encode(command: Command) -> str:
    """The command's text, without the newline."""
    match command:
        case Announce(peer, attributes, prefixes):
            return f"neighbor {peer} announce attributes {_attributes(attributes)} nlri {_join(prefixes)}"
        case Withdraw(peer, prefixes):
            return f"neighbor {peer} withdraw attributes next-hop self nlri {_join(prefixes)}"
        case SendEndOfRib(peer, family):
            return f"neighbor {peer} announce eor ipv{family.value} unicast"
        case Ping():
            return "version"


def batches(prefixes: Sequence[Network]) -> Iterator[tuple[Network, ...]]:
    """`prefixes` in parts that fit one command."""
    for start in range(0, len(prefixes), BATCH):
        yield tuple(prefixes[start : start + BATCH])


def decode(text: str) -> Event:
    """What a line of ExaBGP's says; ValueError when it looks like an event and cannot be understood."""
    if text in ("done", "error"):
        return Ack(text == "done")
    if not text.startswith("{"):
        return Other(text)
    try:
        message = json.loads(text)
        return _decode(message) if "neighbor" in message else Other(text)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"ExaBGP said what we do not understand ({error!r}): {text[:500]}") from error


def _decode(message: Mapping[str, Any]) -> Event:
    neighbor = message["neighbor"]
    peer = ip_address(neighbor["address"]["peer"])
    match message["type"], neighbor.get("state"):
        case "state", "up":
            return PeerUp(peer)
        case "state", "down":
            reason = str(neighbor["reason"])
            return PeerDown(peer, reason, reason.startswith("notification"))
        case "open", _:
            return _open(peer, neighbor["open"]["capabilities"])
        case "update", _:
            body = neighbor["message"]
            return EndOfRib(peer) if "eor" in body else _update(peer, body["update"])
        case kind, state:
            return Other(f"{peer} {kind} {state or ''}".strip())


def _open(peer: Address, capabilities: Mapping[str, Any]) -> PeerOpen:
    graceful = capabilities.get("64", {})
    families = {"ipv4/unicast": Family.V4, "ipv6/unicast": Family.V6}
    preserved = frozenset(families[name] for name in graceful.get("address-family-flags", {}) if name in families)
    return PeerOpen(peer, int(graceful.get("time", 0)), preserved)


def _update(peer: Address, update: Mapping[str, Any]) -> Update:
    attributes = update.get("attribute", {})
    announced: dict[Network, Path] = {}
    for family, by_next_hop in update.get("announce", {}).items():
        if family not in ("ipv4 unicast", "ipv6 unicast"):
            continue
        # A next hop with a link-local address beside the global one is told as two: the global one is read last.
        next_hops = [(ip_address(text), entries) for text, entries in by_next_hop.items()]
        for next_hop, entries in sorted(next_hops, key=lambda each: not each[0].is_link_local):
            path = _path(next_hop, attributes)
            announced.update((ip_network(entry["nlri"], strict=False), path) for entry in entries)
    withdrawn = [
        ip_network(entry["nlri"], strict=False)
        for family, entries in update.get("withdraw", {}).items()
        if family in ("ipv4 unicast", "ipv6 unicast")
        for entry in entries
    ]
    return Update(peer, tuple(announced.items()), tuple(withdrawn))


def _path(next_hop: Address, attributes: Mapping[str, Any]) -> Path:
    as_path: list[int] = []
    length = 0
    for segment in attributes.get("as-path", {}).values():
        numbers = [int(number) for number in segment["value"]]
        as_path += numbers
        length += {"as-sequence": len(numbers), "as-set": 1}.get(segment["element"], 0)
    return Path(
        next_hop=next_hop,
        as_path=tuple(as_path),
        as_path_length=length,
        origin=Origin[str(attributes.get("origin", "incomplete")).upper()],
        med=int(attributes.get("med", 0)),
        local_pref=int(attributes.get("local-preference", 100)),
        communities=tuple(
            ":".join(map(str, community)) if isinstance(community, list) else str(community)
            for name in ("community", "large-community")
            for community in attributes.get(name, ())
        ),
    )


def _join(prefixes: Sequence[Network]) -> str:
    return " ".join(map(str, prefixes))


def _attributes(attributes: Attributes) -> str:
    return f"next-hop {attributes.next_hop or 'self'}"

"""ExaBGP's API, both directions, without any I/O: commands to text, its lines to events. Every difference between
versions of ExaBGP ends here; this is 5.0.15's.

    we write    neighbor 10.0.0.1 announce attributes next-hop self nlri 10.1.0.0/26 10.1.0.64/26
                (or `muslin announce`: see bgp.entry)
    it answers  done | error                 one a command, yet errors found early overtake: so one at a time
    it tells    one JSON object a line       open, up, down, update, end-of-rib

What it does with attributes (tried, and read in its bgp/message/update/attribute/attributes.py):
- An AS path that is given goes to the wire as it stands; nothing is put in front. So towards eBGP it begins with our
  own AS (the session's `local_as`). An empty one is filled in: our AS towards eBGP, nothing towards iBGP.
- An origin that is not given is IGP. A local preference is 100 towards iBGP unless given, and never sent to eBGP.
- MED, communities, ORIGINATOR_ID and CLUSTER_LIST are sent when given, whatever kind of session it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import msgspec

from bgp.attributes import Attributes, Origin, Path
from bgp.exabgp.notification import named
from core.addr import Address, Family, Network
from core.prefix import Prefix

VERSION: Final = "5.0.15"
"""The ExaBGP that all this is about; another one is spoken to without `bgp.exabgp.entry`."""

BATCH: Final = 500
"""Prefixes to one command; ExaBGP refuses a line of more than a megabyte, and does nothing else meanwhile."""

NOTIFIED: Final = re.compile(r"notification (?P<by>sent|received) \((?P<code>\d+),(?P<subcode>\d+)\)")

UNNOTIFIED: Final = MappingProxyType(
    {
        "": "the session was reset",
        "closing connection": "the TCP connection was lost",
        "graceful restarted negotiated, closing without sending any notification": "we closed it",
        "closing outgoing connection as we have another incoming on with higher router-id": "the peer called, too",
        "stop, message [removed]": "its configuration was changed",
    }
)
"""Ends without a NOTIFICATION, in ExaBGP's words and in ours."""

FAMILIES: Final = MappingProxyType({"ipv4/unicast": Family.V4, "ipv6/unicast": Family.V6})

UNICAST: Final = MappingProxyType({4: "ipv4 unicast", 6: "ipv6 unicast"})
"""What ExaBGP calls the family of a session with that IP version; no other is asked for."""

LONG_LIVED_ENTRY: Final = 7
"""Bytes: address family, subsequent family, flags, seconds."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell each of `peers` of `prefixes`, all with the same attributes."""

    peers: tuple[Address, ...]
    attributes: Attributes
    prefixes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take `prefixes` back from each of `peers`."""

    peers: tuple[Address, ...]
    prefixes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class SendEndOfRib:
    """Tell `peer` that it has been told everything: it may drop what it kept from before we restarted."""

    peer: Address
    family: Family


@dataclass(frozen=True, slots=True)
class Refresh:
    """Ask `peer` to tell everything it has of `family` again (RFC 2918)."""

    peer: Address
    family: Family


@dataclass(frozen=True, slots=True)
class Teardown:
    """End the established session with `peer`, for the reason that the Cease subcode `code` gives (RFC 4486); it is
    opened again at once. With graceful restart ExaBGP closes it without a NOTIFICATION, and the peer keeps our routes.
    """

    peer: Address
    code: int


@dataclass(frozen=True, slots=True)
class Load:
    """Read the configuration file again; accepted once the sessions are as it says. ExaBGP's own `reload` is forgotten
    while anything is still to be sent to anybody."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask for a sign of life."""


Command: TypeAlias = Announce | Withdraw | SendEndOfRib | Refresh | Teardown | Load | Ping


@dataclass(frozen=True, slots=True)
class PeerOpen:
    """The peer's OPEN: it keeps forwarding `preserved` families for `restart_s` seconds while it restarts.

    It says `restarting` when it has just restarted, and of which families it has kept its routes, `kept` (RFC 4724,
    3). `long_lived_s` is how long it wants routes of ours kept after that (RFC 9494), 0 without it. `as_number` is
    its own with four bytes if it knows them (`four_byte_as`); `hold_s` what it proposes.
    """

    peer: Address
    restart_s: int
    preserved: frozenset[Family]
    hold_s: int = 0
    restarting: bool = False
    kept: frozenset[Family] = frozenset()
    long_lived_s: int = 0
    as_number: int = 0
    four_byte_as: bool = False
    router_id: IPv4Address | None = None
    route_refresh: bool = False


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
    """One UPDATE of a peer; withdrawals come before announcements. What is said of several prefixes stands once."""

    peer: Address
    announced: tuple[tuple[Path, tuple[Prefix, ...]], ...] = ()
    withdrawn: tuple[Prefix, ...] = ()


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


def encode(command: Command, *, extended: bool = False) -> str:
    """The command's text, without the newline; `extended` for an ExaBGP that was started through `bgp.exabgp.entry`."""
    match command:
        case Announce(peers, attributes, prefixes):
            verb = "muslin announce" if extended else "announce attributes"
            return f"{_to(peers)} {verb} {_attributes(attributes)} nlri {_join(prefixes)}"
        case Withdraw(peers, prefixes):
            what = "muslin withdraw" if extended else "withdraw attributes next-hop self nlri"
            return f"{_to(peers)} {what} {_join(prefixes)}"
        case SendEndOfRib(peer, family):
            return f"neighbor {peer} announce eor ipv{family.value} unicast"
        case Refresh(peer, family):
            return f"neighbor {peer} announce route-refresh ipv{family.value} unicast"
        case Teardown(peer, code):
            return f"neighbor {peer} teardown {code}"
        case Load():
            return "muslin configure" if extended else "reload"
        case Ping():
            return "version"


def singly(command: Command) -> Iterator[Command]:
    """The same, to one peer at a time: ExaBGP's own commands go to those of several that it knows, and say `done`."""
    if isinstance(command, (Announce, Withdraw)):
        yield from (replace(command, peers=(peer,)) for peer in command.peers)
    else:
        yield command


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
        message = msgspec.json.decode(text)
        return _decode(message) if "neighbor" in message else Other(text)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"ExaBGP said what we do not understand ({error!r}): {text[:500]}") from error


def stalled(peer: Address, seconds: float) -> str:
    """The line with which we ourselves say, as ExaBGP would, that a session is down because its peer does not read."""
    reason = f"it took nothing of what we sent for {seconds:.0f} s: {named(8, 0)}"
    neighbor = {"address": {"peer": str(peer)}, "state": "down", "reason": reason}
    return json.dumps({"type": "state", "neighbor": neighbor})


def _decode(message: Mapping[str, Any]) -> Event:
    neighbor = message["neighbor"]
    peer = ip_address(neighbor["address"]["peer"])
    match message["type"], neighbor.get("state"):
        case "state", "up":
            return PeerUp(peer)
        case "state", "down":
            reason = str(neighbor["reason"])
            return PeerDown(peer, _readable(reason), reason.startswith("notification"))
        case "open", _:
            return _open(peer, neighbor["open"])
        case "update", _:
            body = neighbor["message"]
            return EndOfRib(peer) if "eor" in body else _update(peer, body["update"], external=_external(neighbor))
        case kind, state:
            return Other(f"{peer} {kind} {state or ''}".strip())


def _readable(reason: str) -> str:
    """Why a session ended, for people: ExaBGP gives numbers, or speaks of itself."""
    if found := NOTIFIED.fullmatch(reason):
        side = "the peer" if found["by"] == "received" else "we"
        return f"{side} sent {named(int(found['code']), int(found['subcode']))}"
    return UNNOTIFIED.get(reason, reason)


def _open(peer: Address, said: Mapping[str, Any]) -> PeerOpen:
    capabilities = said["capabilities"]
    graceful, long_lived = capabilities.get("64", {}), capabilities.get("71", {})
    flags = {
        FAMILIES[name]: kept for name, kept in graceful.get("address-family-flags", {}).items() if name in FAMILIES
    }
    as_number = capabilities.get("65", {}).get("asn4", said["asn"])
    return PeerOpen(
        peer,
        int(graceful.get("time", 0)),
        frozenset(flags),
        restarting=bool(graceful.get("restart-flags")),
        kept=frozenset(family for family, kept in flags.items() if kept),
        long_lived_s=_long_lived(peer, bytes.fromhex(long_lived.get("raw", ""))),
        as_number=int(as_number),
        four_byte_as="65" in capabilities,
        hold_s=int(said["hold_time"]),
        router_id=IPv4Address(said["router_id"]),
        route_refresh="2" in capabilities,
    )


def _long_lived(peer: Address, capability: bytes) -> int:
    """Seconds for the session's own family; ExaBGP shows this capability as it came (RFC 9494, 3.1)."""
    wanted = bytes((0, {4: 1, 6: 2}[peer.version], 1))
    for at in range(0, len(capability) - LONG_LIVED_ENTRY + 1, LONG_LIVED_ENTRY):
        entry = capability[at : at + LONG_LIVED_ENTRY]
        if entry.startswith(wanted):
            return int.from_bytes(entry[4:], "big")
    return 0


def _update(peer: Address, update: Mapping[str, Any], *, external: bool) -> Update:
    family = UNICAST[peer.version]
    announced = [
        (_next_hop(text, peer.version), _prefixes(entries, peer.version))
        for text, entries in update.get("announce", {}).get(family, {}).items()
    ]
    if len(announced) > 1:  # a next hop with a link-local address beside the global one is told as two
        announced = [each for each in announced if each[0] is None or not each[0].is_link_local] or announced
    withdrawn = _prefixes(update.get("withdraw", {}).get(family, ()), peer.version)
    attributes = update.get("attribute", {})
    usable = _usable(attributes, external=external)
    paths: list[tuple[Path, tuple[Prefix, ...]]] = []
    for next_hop, prefixes in announced:
        if usable and next_hop is not None:
            paths.append((_path(next_hop, attributes), prefixes))
        else:
            withdrawn += prefixes
    return Update(peer, tuple(paths), withdrawn)


def _external(neighbor: Mapping[str, Any]) -> bool:
    return bool(neighbor["asn"]["local"] != neighbor["asn"]["peer"])


def _usable(attributes: Mapping[str, Any], *, external: bool) -> bool:
    """Whether what every announcement must have is there (RFC 7606, 3 d, 7.1 and 7.2): ExaBGP asks for none of it."""
    path = external and not any(segment["value"] for segment in attributes.get("as-path", {}).values())
    return str(attributes.get("origin", "")).upper() in Origin.__members__ and not path


def _next_hop(text: str, version: int) -> Address | None:
    """None when there is none that the session's prefixes can have (RFC 7606, 7.3)."""
    try:
        next_hop = ip_address(text)
    except ValueError:
        return None
    return next_hop if next_hop.version == version and not next_hop.is_multicast else None


def _prefixes(entries: Iterable[Mapping[str, str]], version: int) -> tuple[Prefix, ...]:
    """From ExaBGP's own list, or from `bgp.exabgp.entry`'s."""
    found: list[Prefix] = []
    for entry in entries:
        packed = entry.get("packed")
        found += [Prefix.parse(entry["nlri"])] if packed is None else Prefix.unpack(bytes.fromhex(packed), version)
    return tuple(found)


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
        origin=Origin[str(attributes["origin"]).upper()],
        med=int(attributes.get("med", 0)),
        local_pref=int(attributes.get("local-preference", 100)),
        communities=tuple(
            ":".join(map(str, community)) if isinstance(community, list) else str(community)
            for name in ("community", "large-community")
            for community in attributes.get(name, ())
        ),
        originator=IPv4Address(attributes["originator-id"]) if "originator-id" in attributes else None,
        clusters=tuple(IPv4Address(cluster) for cluster in attributes.get("cluster-list", ())),
    )


def _to(peers: Sequence[Address]) -> str:
    return " , ".join(f"neighbor {peer}" for peer in peers)


def _join(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def _attributes(attributes: Attributes) -> str:
    large = [each for each in attributes.communities if each.count(":") > 1]
    standard = [each for each in attributes.communities if each.count(":") == 1]
    said = {
        "next-hop": attributes.next_hop or "self",
        "origin": attributes.origin.name.lower() if attributes.origin is not Origin.IGP else None,
        "as-path": _list(attributes.as_path),
        "med": attributes.med,
        "local-preference": attributes.local_pref,
        "community": _list(standard),
        "large-community": _list(large),
        "originator-id": attributes.originator,
        "cluster-list": _list(attributes.clusters),
    }
    return " ".join(f"{name} {value}" for name, value in said.items() if value is not None)


def _list(values: Sequence[object]) -> str | None:
    return f"[ {_join(values)} ]" if values else None

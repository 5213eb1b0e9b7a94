"""Ports that no host endpoint closes, so that nobody locks themselves out of a host or cuts it off its cluster.

Calico's lists (calico.md 1.6), and what a muslin host needs besides: DHCPv6 beside DHCP, whose answers conntrack does
not recognise, BFD beside BGP, which goes down with it, and the port at which felix itself reaches the datastore. They
hold for what the host itself receives and sends, before any policy, in every plane but FORWARD. Untracked, both
directions of the packet are covered: nothing there knows what is an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import groupby
from typing import Final

from core import values
from core.addr import Address, Network, contains
from core.resources.network import FelixConfigurationSpec, ProtoPort
from core.resources.policy import Direction

_TCP, _UDP = values.PROTOCOLS["TCP"], values.PROTOCOLS["UDP"]
_CLUSTER: Final = (179, 2379, 2380, 5473, 6443, 6666, 6667)  # BGP, etcd's two, Typha, Kubernetes' API, etcd of old
_BFD: Final = 3784
_HEADER: Final = {4: "ip", 6: "ip6"}


@dataclass(frozen=True, slots=True)
class Failsafe:
    """A protocol and port; `net` is where the other end must be, None anywhere."""

    protocol: int
    port: int
    net: Network | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failsafes:
    """What stays open, by who begins: others at `inbound` ports of ours, we at `outbound` ports of theirs."""

    inbound: tuple[Failsafe, ...] = ()
    outbound: tuple[Failsafe, ...] = ()


DEFAULT: Final = Failsafes(
    inbound=(
        Failsafe(_TCP, 22),
        Failsafe(_UDP, 68),
        Failsafe(_UDP, 546),
        Failsafe(_UDP, _BFD),
        *(Failsafe(_TCP, port) for port in _CLUSTER),
    ),
    outbound=(
        Failsafe(_UDP, 53),
        Failsafe(_UDP, 67),
        Failsafe(_UDP, 547),
        Failsafe(_UDP, _BFD),
        *(Failsafe(_TCP, port) for port in _CLUSTER),
    ),
)
"""What holds where FelixConfiguration says nothing."""


def failsafes(settings: FelixConfigurationSpec, datastore: str) -> Failsafes:
    """What holds on this host, whose felix reaches the datastore at `datastore` (`unix:PATH` or `HOST:PORT`)."""
    inbound, outbound = settings.failsafe_inbound_host_ports, settings.failsafe_outbound_host_ports
    return Failsafes(
        inbound=DEFAULT.inbound if inbound is None else _read(inbound),
        outbound=(*DEFAULT.outbound, *_datastore(datastore)) if outbound is None else _read(outbound),
    )


def _datastore(address: str) -> tuple[Failsafe, ...]:
    port = address.rpartition(":")[2]
    return (Failsafe(_TCP, int(port)),) if not address.startswith("unix:") and port.isascii() and port.isdigit() else ()


def _read(ports: Sequence[ProtoPort]) -> tuple[Failsafe, ...]:
    return tuple(
        Failsafe(values.protocol(each.protocol.upper()), each.port, ip_network(each.net) if each.net else None)
        for each in ports
    )


def stateful(given: Failsafes, direction: Direction, then: str) -> list[str]:
    """Rules that say `then` of packets that begin a connection at a failsafe port."""
    if direction is Direction.INGRESS:
        return _rules(given.inbound, "dport", "saddr", then)
    return _rules(given.outbound, "dport", "daddr", then)


def stateless(given: Failsafes, direction: Direction, then: str) -> list[str]:
    """Rules that say `then` of every packet of a connection at a failsafe port, whoever began it."""
    other = "saddr" if direction is Direction.INGRESS else "daddr"
    begun, answered = given.inbound, given.outbound
    if direction is Direction.EGRESS:
        begun, answered = answered, begun
    return [*_rules(begun, "dport", other, then), *_rules(answered, "sport", other, then)]


def covers(given: Failsafes, direction: Direction, protocol: int, dport: int | None, other: Address) -> bool:
    """Whether `stateful` rules mean a packet to `dport`, whose other end is `other`."""
    return _meant(given.inbound if direction is Direction.INGRESS else given.outbound, protocol, dport, other)


def covers_either(
    given: Failsafes, direction: Direction, protocol: int, ports: tuple[int | None, int | None], other: Address
) -> bool:
    """Whether `stateless` rules mean a packet from and to these `ports`."""
    begun, answered = given.inbound, given.outbound
    if direction is Direction.EGRESS:
        begun, answered = answered, begun
    return _meant(begun, protocol, ports[1], other) or _meant(answered, protocol, ports[0], other)


def _meant(ports: Sequence[Failsafe], protocol: int, port: int | None, other: Address) -> bool:
    return any(
        (each.protocol, each.port) == (protocol, port) and (each.net is None or contains(each.net, other))
        for each in ports
    )


def _rules(ports: Sequence[Failsafe], end: str, other: str, then: str) -> list[str]:
    rules = []
    for net, group in groupby(sorted(set(ports), key=_order), key=lambda each: each.net):
        keys = ", ".join(f"{each.protocol} . {each.port}" for each in group)
        within = f"{_HEADER[net.version]} {other} {net} " if net is not None else ""
        rules.append(f"{within}meta l4proto . th {end} {{ {keys} }} {then}")
    return rules


def _order(each: Failsafe) -> tuple[str, int, int]:
    return "" if each.net is None else str(each.net), each.protocol, each.port

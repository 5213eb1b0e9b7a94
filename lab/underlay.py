"""The lab's ground: namespaces, links, addresses and routers, as the wiring says; no muslin yet.

mus.LAB.HOST      a router, a node or an external host
mus.LAB.NS.POD    a pod
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from core.addr import host_prefix
from core.errors import Unsupported
from lab import ip
from lab.frr import Frr
from lab.gobgp import Gobgp
from lab.routers import Bird, Kernel, Router, forward
from lab.topology import RouterKind, Topology
from lab.wiring import Port, Wiring
from linux import netns, rights

EVERYTHING: Final = {4: "0.0.0.0/0", 6: "::/0"}

_CLASSES: Final[Mapping[RouterKind, type[Router]]] = {
    RouterKind.BIRD: Bird,
    RouterKind.FRR: Frr,
    RouterKind.GOBGP: Gobgp,
    RouterKind.KERNEL: Kernel,
}


def require_root() -> None:
    """Raise `Unsupported` when this process may not make namespaces."""
    if os.geteuid() != 0:
        raise Unsupported("a lab needs root, because it lives in network namespaces: run the same command with sudo")


def require_tools(topology: Topology) -> None:
    """Raise `Unsupported` when this machine lacks what the lab runs, before anything of it is made."""
    rights.require_tools(["ip"])
    for kind in sorted({router.kind for router in topology.routers}):
        _CLASSES[kind].require()


def prefix(lab: str) -> str:
    """How the names of all namespaces of a lab begin. No host or lab has a dot in its name, so labs never mix."""
    return f"mus.{lab}."


def namespace(lab: str, host: str) -> str:
    """The namespace of a host, or of a pod (`namespace/name`)."""
    return prefix(lab) + host.replace("/", ".")


def build(lab: str, wiring: Wiring) -> None:
    """Make the namespaces of all hosts, wire them, and let routers and nodes forward."""
    for host in wiring.hosts:
        netns.create(namespace(lab, host))
    ip.batch(
        f"link add name {wire.a.device} netns {namespace(lab, wire.a.host)} type veth"
        f" peer name {wire.b.device} netns {namespace(lab, wire.b.host)}"
        for wire in wiring.wires
    )
    for host in wiring.hosts:
        forward(namespace(lab, host))
        ip.batch(_host(wiring, host), namespace(lab, host))


def _host(wiring: Wiring, host: str) -> Iterator[str]:
    """The `ip` lines that finish one host's namespace."""
    router = wiring.routers.get(host)
    bridges = router.bridges if router else {wiring.switches[host]: ()} if host in wiring.switches else {}
    for bridge, addresses in bridges.items():
        yield f"link add name {bridge} type bridge"
        yield f"link set {bridge} up"
        yield from (f"addr add {address} dev {bridge}{_at_once(address.version)}" for address in addresses)
    for port in _ports(wiring, host):
        yield from (f"addr add {each} dev {port.device}{_at_once(each.version)}" for each in port.addresses)
        if port.bridge:
            yield f"link set {port.device} master {port.bridge}"
        yield f"link set {port.device} up"
    loopbacks = wiring.loopbacks.get(host, ())
    yield from (f"addr add {each} dev lo{_at_once(each.version)}" for each in loopbacks)
    for version in sorted({gateway.version for gateway in wiring.gateways.get(host, ())}):
        source = next((f" src {each.ip}" for each in loopbacks if each.version == version), "")
        hops = [f" nexthop via {each}" for each in wiring.gateways[host] if each.version == version]
        yield f"route add {EVERYTHING[version]}{source}{''.join(hops)}"
    for peer in router.neighbours if router else ():
        if peer.via:
            yield f"route add {host_prefix(peer.address)} via {peer.via}"


def _ports(wiring: Wiring, host: str) -> Iterator[Port]:
    return (port for wire in wiring.wires for port in (wire.a, wire.b) if port.host == host)


def _at_once(version: int) -> str:
    """IPv6 addresses are used without waiting for duplicates to show up: we gave them out ourselves."""
    return " nodad" if version == 6 else ""


def router(lab: str, wiring: Wiring, name: str, directory: Path) -> Router:
    """The router `name`, of its kind, with its run directory below `directory`."""
    plan = wiring.routers[name]
    return _CLASSES[plan.kind](plan, namespace(lab, name), directory / name)

"""What a lab looks like, as a user writes it: racks, routers, nodes, pods, and the manifests to apply.

The YAML is described field by field in docs/lab.md. Unknown fields are refused; every fault is reported with its
path, all at once. Nothing here touches the machine: names, links and addresses follow in `lab.wiring`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec
import yaml

from core.addr import Family, Network
from core.errors import Invalid, Problem
from core.resources.base import Base

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_AT = re.compile(r"(?s)(?P<why>.*) - at `(?P<path>[^`]*)`$")
MOST = 250
"""Most racks, router links or external hosts in a lab, and most nodes in a rack: what one octet numbers."""


MOST_ROUTERS = 9
"""Most routers of a rack: hosts 1 to 9 of its subnet; nodes begin at 11."""


class RouterKind(StrEnum):
    """What runs in a router's namespace. `kernel` forwards between its racks and speaks no BGP."""

    BIRD = "bird"
    FRR = "frr"
    GOBGP = "gobgp"
    KERNEL = "kernel"


class Bfd(Base, frozen=True, kw_only=True):
    """BFD with nodes: milliseconds between packets, both ways; lost after `multiplier` missed ones."""

    interval: int = 300
    multiplier: int = 3


class Router(Base, frozen=True, kw_only=True):
    """A router. `uplinks` names routers above it; `node_hold_time` is offered to nodes, in seconds (None: default).

    `bfd` and `password` (TCP-MD5) are for its sessions with nodes. Nodes of its own AS are its clients: it reflects.
    """

    name: str
    kind: RouterKind
    as_number: int = 0
    uplinks: tuple[str, ...] = ()
    node_hold_time: int | None = None
    bfd: Bfd | None = None
    password: str = ""


class Rack(Base, frozen=True, kw_only=True):
    """One subnet and its routers: `router`, or several `routers`, which then hang off a switch with the nodes.

    With `loopbacks` each router has a subnet, a node has an uplink to each, and its address is on its loopback.
    `as_number` is its nodes' AS, where a node gives none of its own.
    """

    name: str
    router: str = ""
    routers: tuple[str, ...] = ()
    as_number: int | None = None
    loopbacks: bool = False

    @property
    def tops(self) -> tuple[str, ...]:
        """Its routers."""
        return self.routers or (self.router,)


class NodeEntry(Base, frozen=True, kw_only=True):
    """A host of the cluster. It gets the label `rack` besides its own; with a cluster ID it reflects to other nodes."""

    name: str
    rack: str
    as_number: int | None = None
    labels: Mapping[str, str] = {}
    route_reflector_cluster_id: str = msgspec.field(default="", name="routeReflectorClusterID")


class PodPort(Base, frozen=True, kw_only=True):
    """A port with a name that policies can use."""

    name: str
    port: int
    protocol: str = "TCP"


class Pod(Base, frozen=True, kw_only=True):
    """A pod, `namespace/name`. It answers on each of `ports` over TCP and UDP."""

    name: str
    node: str
    labels: Mapping[str, str] = {}
    ports: tuple[int | PodPort, ...] = (8080,)
    service_account: str = "default"

    @property
    def namespace(self) -> str:
        """Its Kubernetes namespace."""
        return self.name.partition("/")[0]

    @property
    def short(self) -> str:
        """Its name within the namespace."""
        return self.name.partition("/")[2]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The ports it answers on."""
        return tuple(port if isinstance(port, int) else port.port for port in self.ports)


class External(Base, frozen=True, kw_only=True):
    """A host outside the cluster, behind a router; it answers on `ports` as pods do."""

    name: str
    router: str
    ports: tuple[int, ...] = (8080,)


class Topology(Base, frozen=True, kw_only=True):
    """A whole lab. `pools` are the prefixes that routers take from nodes; `manifests` are relative to the file.

    With `runtimes` every node has a CNI agent as well, which container runtimes ask for pods.
    """

    name: str
    pools: tuple[str, ...] = ()
    routers: tuple[Router, ...]
    racks: tuple[Rack, ...]
    nodes: tuple[NodeEntry, ...]
    pods: tuple[Pod, ...] = ()
    external: tuple[External, ...] = ()
    manifests: tuple[str, ...] = ()
    runtimes: bool = False

    @property
    def networks(self) -> tuple[Network, ...]:
        """`pools` as prefixes."""
        return tuple(ip_network(text) for text in self.pools)

    @property
    def families(self) -> tuple[Family, ...]:
        """The IP versions that links carry: those of the pools, or IPv4 when there are none."""
        return tuple(Family(version) for version in sorted({pool.version for pool in self.networks})) or (Family.V4,)

    def node_as(self, node: NodeEntry) -> int:
        """The AS a node speaks for."""
        rack = next(rack for rack in self.racks if rack.name == node.rack)
        return node.as_number or rack.as_number or 0


def load(path: Path) -> Topology:
    """Read and check a topology; `Invalid` lists everything wrong with it, each with its path."""
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise Invalid([Problem(why=f"cannot be read: {error.strerror}", where=str(path))]) from error
    except yaml.YAMLError as error:
        raise Invalid([Problem(why=f"is no YAML: {error}", where=str(path))]) from error
    return parse(document, str(path))


def parse(document: Any, where: str = "topology") -> Topology:
    """A topology from plain data, checked."""
    try:
        topology = msgspec.convert(document, Topology)
    except msgspec.ValidationError as error:
        found = _AT.match(str(error))
        why, path = (found["why"], found["path"].removeprefix("$").lstrip(".")) if found else (str(error), "")
        raise Invalid([Problem(why=why, path=path, where=where)]) from error
    problems = [Problem(why=why, path=path, where=where) for path, why in _faults(topology)]
    if problems:
        raise Invalid(problems)
    return topology


def _faults(topology: Topology) -> Iterator[tuple[str, str]]:
    yield from _names(topology)
    yield from _references(topology)
    yield from _numbers(topology)


def _names(topology: Topology) -> Iterator[tuple[str, str]]:
    hosts = [
        (f"{part}[{i}].name", each.name)
        for part in ("routers", "nodes", "external")
        for i, each in enumerate(getattr(topology, part))
    ]
    racks = [(f"racks[{i}].name", rack.name) for i, rack in enumerate(topology.racks)]
    pods = [(f"pods[{i}].name", pod.name) for i, pod in enumerate(topology.pods)]
    for path, name in [("name", topology.name), *hosts, *racks]:
        if not NAME.fullmatch(name):
            yield path, f"{name!r} must be at most 32 lower-case letters, digits and inner dashes"
    for path, name in pods:
        if not re.fullmatch(f"{NAME.pattern}/{NAME.pattern}", name):
            yield path, f"{name!r} must read namespace/pod, each of lower-case letters, digits and inner dashes"
    for group in (hosts, racks, pods):
        yield from _twice(group)


def _twice(named: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    named = list(named)
    counts = Counter(name for _, name in named)
    yield from ((path, f"{name!r} is given {counts[name]} times") for path, name in named if counts[name] > 1)


def _references(topology: Topology) -> Iterator[tuple[str, str]]:
    routers = {router.name: router for router in topology.routers}
    racks, nodes = {rack.name for rack in topology.racks}, {node.name for node in topology.nodes}
    wanted = [
        *(
            (f"racks[{i}].{f'routers[{j}]' if rack.routers else 'router'}", name, "router", set(routers))
            for i, rack in enumerate(topology.racks)
            for j, name in enumerate(rack.tops)
        ),
        *((f"external[{i}].router", each.router, "router", set(routers)) for i, each in enumerate(topology.external)),
        *((f"nodes[{i}].rack", node.rack, "rack", racks) for i, node in enumerate(topology.nodes)),
        *((f"pods[{i}].node", pod.node, "node", nodes) for i, pod in enumerate(topology.pods)),
    ]
    for path, name, what, known in wanted:
        if name not in known:
            yield path, f"no {what} is named {name!r}; there are {', '.join(sorted(known)) or 'none'}"
    yield from _racks(topology, routers)
    for i, router in enumerate(topology.routers):
        for j, uplink in enumerate(router.uplinks):
            if uplink not in routers or uplink == router.name:
                yield f"routers[{i}].uplinks[{j}]", f"{uplink!r} is no other router"
            elif RouterKind.KERNEL in (router.kind, routers[uplink].kind):
                yield f"routers[{i}].uplinks[{j}]", "a router of kind kernel speaks no BGP, so it stands alone"


def _racks(topology: Topology, routers: Mapping[str, Router]) -> Iterator[tuple[str, str]]:
    """What a rack's routers must be, each and together."""
    for i, rack in enumerate(topology.racks):
        if rack.router and rack.routers:
            yield f"racks[{i}].routers", "a rack has one router or several routers, not both"
        if len(set(rack.routers)) < len(rack.routers) or len(rack.routers) > MOST_ROUTERS:
            yield f"racks[{i}].routers", f"must be at most {MOST_ROUTERS} different routers"
        for name in rack.tops if rack.loopbacks else ():
            if name in routers and routers[name].kind in (RouterKind.GOBGP, RouterKind.KERNEL):
                why = f"{name} is of kind {routers[name].kind}, which finds no way to nodes behind their loopbacks"
                yield f"racks[{i}].loopbacks", why
    for i, router in enumerate(topology.routers):
        if router.kind is RouterKind.GOBGP and router.bfd:
            yield f"routers[{i}].bfd", "GoBGP has no BFD: use bird or frr"


def _numbers(topology: Topology) -> Iterator[tuple[str, str]]:
    for i, router in enumerate(topology.routers):
        if router.kind is not RouterKind.KERNEL and not 0 < router.as_number < 2**32:
            yield f"routers[{i}].asNumber", "a router that speaks BGP needs an AS number from 1 to 4294967295"
    racks = {rack.name: rack for rack in topology.racks}
    for i, node in enumerate(topology.nodes):
        if node.rack in racks and not 0 < topology.node_as(node) < 2**32:
            yield f"nodes[{i}].asNumber", f"needs an AS number from 1 to 4294967295, here or in rack {node.rack!r}"
    for i, pool in enumerate(topology.pools):
        try:
            ip_network(pool)
        except ValueError as error:
            yield f"pools[{i}]", str(error)
    for i, pod in enumerate(topology.pods):
        yield from (
            (f"pods[{i}].ports[{j}]", f"{number} is no port from 1 to 65535")
            for j, number in enumerate(pod.numbers)
            if not 0 < number < 65536
        )
    counts = {
        "racks": len(topology.racks),
        "external": len(topology.external),
        "routers": sum(len(router.uplinks) for router in topology.routers),
        "nodes": max(Counter(node.rack for node in topology.nodes).values(), default=0),
    }
    yield from ((part, f"too many: a lab numbers at most {MOST}") for part, n in counts.items() if n > MOST)

"""Every namespace, link and address of a lab, worked out from its topology; pure, so the same file gives the same lab.

                 spine                    k-th link between routers   172.31.k.0/31   fd31:k::/127   (upper end: 0)
               /       \\
            tor1       tor2 -- external   m-th external host          172.30.m.0/24   fd30:m::/64    (router 1, host 10)
             |          |
           rack 1     rack 2              n-th rack: one subnet       172.16.n.0/24   fd16:n::/64    (router 1,
          /      \\   /      \\                                                             j-th node of the rack 10+j)
        node    node node   node

A rack is a bridge in its router's namespace; a node's uplink is `eth0`, with its default route to the rack's
router. Numbers n, k, m and j count from 1, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_interface

from core.addr import Address, Family, Interface, Network
from lab.topology import External, NodeEntry, Router, RouterKind, Topology

UPLINK = "eth0"
"""The interface of nodes, pods and external hosts that leads out."""


@dataclass(frozen=True, slots=True)
class Port:
    """One end of a link: a device in a host's namespace, with its addresses; `bridge` names the bridge it joins."""

    host: str
    device: str
    addresses: tuple[Interface, ...] = ()
    bridge: str = ""


@dataclass(frozen=True, slots=True)
class Wire:
    """A veth pair."""

    a: Port
    b: Port


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A BGP session of a router, from its side. `node` tells hosts of the cluster from other routers.

    `shared_as` says that another node of the lab speaks for the same AS, so the router has to hide it.
    """

    name: str
    address: Address
    local: Address
    as_number: int
    node: bool
    shared_as: bool = False


@dataclass(frozen=True, slots=True)
class RouterWiring:
    """A router with all it has to know."""

    name: str
    kind: RouterKind
    as_number: int
    router_id: str
    bridges: Mapping[str, tuple[Interface, ...]]
    neighbours: tuple[Neighbour, ...]
    pools: tuple[Network, ...]
    node_hold_time: int | None


@dataclass(frozen=True, slots=True)
class Wiring:
    """The whole lab. `gateways` are the default routes of nodes and external hosts, by host."""

    hosts: tuple[str, ...]
    wires: tuple[Wire, ...]
    routers: Mapping[str, RouterWiring]
    gateways: Mapping[str, tuple[Address, ...]]
    addresses: Mapping[str, tuple[Interface, ...]]


def rack_interface(rack: int, host: int, family: Family) -> Interface:
    """A host's address in the rack's subnet, both counted from 1 (host 1 is the router)."""
    return ip_interface(f"172.16.{rack}.{host}/24" if family is Family.V4 else f"fd16:{rack}::{host}/64")


def link_interface(link: int, end: int, family: Family) -> Interface:
    """An end (0 upper, 1 lower) of a link between routers."""
    return ip_interface(f"172.31.{link}.{end}/31" if family is Family.V4 else f"fd31:{link}::{end}/127")


def external_interface(number: int, host: int, family: Family) -> Interface:
    """A host's address in an external host's subnet (1 the router, 10 the host)."""
    return ip_interface(f"172.30.{number}.{host}/24" if family is Family.V4 else f"fd30:{number}::{host}/64")


class _Plan:
    """The wiring while it is worked out."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.families = topology.families
        self.wires: list[Wire] = []
        self.gateways: dict[str, tuple[Address, ...]] = {}
        self.addresses: dict[str, tuple[Interface, ...]] = {}
        self.bridges: dict[str, dict[str, tuple[Interface, ...]]] = {router.name: {} for router in topology.routers}
        self.neighbours: dict[str, list[Neighbour]] = {router.name: [] for router in topology.routers}

    def racks(self) -> None:
        """Each rack's bridge, and its nodes on it."""
        for n, rack in enumerate(self.topology.racks, 1):
            self.bridges[rack.router][f"rack{n}"] = tuple(rack_interface(n, 1, f) for f in self.families)
            nodes = [node for node in self.topology.nodes if node.rack == rack.name]
            for j, node in enumerate(nodes, 1):
                self.node(rack.router, n, j, node)

    def node(self, router: str, n: int, j: int, node: NodeEntry) -> None:
        """One node on the rack's bridge, and the router's sessions with it."""
        own = tuple(rack_interface(n, 10 + j, f) for f in self.families)
        gateways = tuple(rack_interface(n, 1, f).ip for f in self.families)
        self.wires.append(Wire(Port(node.name, UPLINK, own), Port(router, f"r{n}p{j}", bridge=f"rack{n}")))
        self.addresses[node.name] = own
        self.gateways[node.name] = gateways
        number = self.topology.node_as(node)
        shared = [other for other in self.topology.nodes if self.topology.node_as(other) == number]
        for interface, gateway in zip(own, gateways, strict=True):
            peer = Neighbour(node.name, interface.ip, gateway, number, node=True, shared_as=len(shared) > 1)
            self.neighbours[router].append(peer)

    def links(self) -> None:
        """Links between routers, and the session over each."""
        pairs = [(lower, upper) for lower in self.topology.routers for upper in lower.uplinks]
        numbers = {router.name: router.as_number for router in self.topology.routers}
        for k, (lower, upper) in enumerate(pairs, 1):
            above = tuple(link_interface(k, 0, f) for f in self.families)
            below = tuple(link_interface(k, 1, f) for f in self.families)
            self.wires.append(Wire(Port(lower.name, f"up{k}", below), Port(upper, f"down{k}", above)))
            for a, b in zip(above, below, strict=True):
                self.neighbours[lower.name].append(Neighbour(upper, a.ip, b.ip, numbers[upper], node=False))
                self.neighbours[upper].append(Neighbour(lower.name, b.ip, a.ip, lower.as_number, node=False))

    def external(self, m: int, host: External) -> None:
        """A host outside the cluster."""
        own = tuple(external_interface(m, 10, f) for f in self.families)
        router = tuple(external_interface(m, 1, f) for f in self.families)
        self.wires.append(Wire(Port(host.name, UPLINK, own), Port(host.router, f"out{m}", router)))
        self.addresses[host.name] = own
        self.gateways[host.name] = tuple(interface.ip for interface in router)

    def router(self, number: int, router: Router) -> RouterWiring:
        """Everything a router has to know."""
        return RouterWiring(
            name=router.name,
            kind=router.kind,
            as_number=router.as_number,
            router_id=f"172.31.255.{number}",
            bridges=self.bridges[router.name],
            neighbours=tuple(self.neighbours[router.name]),
            pools=self.topology.networks,
            node_hold_time=router.node_hold_time,
        )


def wire(topology: Topology) -> Wiring:
    """The wiring of a topology."""
    plan = _Plan(topology)
    plan.racks()
    plan.links()
    for m, host in enumerate(topology.external, 1):
        plan.external(m, host)
    routers, nodes, outside = topology.routers, topology.nodes, topology.external
    return Wiring(
        hosts=(*(each.name for each in routers), *(each.name for each in nodes), *(each.name for each in outside)),
        wires=tuple(plan.wires),
        routers={router.name: plan.router(i, router) for i, router in enumerate(topology.routers, 1)},
        gateways=plan.gateways,
        addresses=plan.addresses,
    )

"""Every namespace, link and address of a lab, worked out from its topology; pure, so the same file gives the same lab.

                 spine                    k-th link between routers   172.31.k.0/31   fd31:k::/127   (upper end: 0)
               /       \\
            tor1       tor2 -- external   m-th external host          172.30.m.0/24   fd30:m::/64    (router 1, host 10)
             |          |
           rack 1     rack 2              n-th rack: one subnet       172.16.n.0/24   fd16:n::/64    (router 1,
          /      \\   /      \\                                                             j-th node of the rack 10+j)
        node    node node   node

A rack is a bridge in its router's namespace; a node's uplink is `eth0`, with its default route to the rack's
router. Numbers n, k, m and j count from 1, in the order of the file. A rack of several routers is one of these:

    a switch of its own                              loopbacks: a bridge in each router
    the r-th router is host r of the subnet          the r-th router's subnet  172.(15+r).n.0/24   fd(15+r):n::/64
    default route to all routers                     eth0, eth1, ... one to each, default route over all
                                                     the j-th node's address   172.29.n.(10+j)/32  fd29:n::(10+j)/128
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface

from core.addr import Address, Family, Interface, Network
from lab.topology import Bfd, External, NodeEntry, Rack, Router, RouterKind, Topology

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

    `shared_as` says that another node of the lab speaks for the same AS, so the router has to hide it. `client` says
    that it is of the router's own AS, so the router reflects to it. `via` is the way to a node's loopback.
    """

    name: str
    address: Address
    local: Address
    as_number: int
    node: bool
    shared_as: bool = False
    client: bool = False
    via: Address | None = None


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
    bfd: Bfd | None = None
    password: str = ""


@dataclass(frozen=True, slots=True)
class Wiring:
    """The whole lab. `gateways` are the default routes of nodes and external hosts, by host; `switches` the hosts that
    are nothing but a bridge, of that name; `loopbacks` the nodes' addresses that are on no link."""

    hosts: tuple[str, ...]
    wires: tuple[Wire, ...]
    routers: Mapping[str, RouterWiring]
    gateways: Mapping[str, tuple[Address, ...]]
    addresses: Mapping[str, tuple[Interface, ...]]
    switches: Mapping[str, str] = field(default_factory=dict)
    loopbacks: Mapping[str, tuple[Interface, ...]] = field(default_factory=dict)


def rack_interface(rack: int, host: int, family: Family, subnet: int = 1) -> Interface:
    """A host's address in a subnet of the rack, all counted from 1 (host 1 is the router)."""
    high = 15 + subnet
    return ip_interface(f"172.{high}.{rack}.{host}/24" if family is Family.V4 else f"fd{high}:{rack}::{host}/64")


def loopback_interface(rack: int, host: int, family: Family) -> Interface:
    """A node's address on its loopback."""
    return ip_interface(f"172.29.{rack}.{host}/32" if family is Family.V4 else f"fd29:{rack}::{host}/128")


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
        self.switches: dict[str, str] = {}
        self.loopbacks: dict[str, tuple[Interface, ...]] = {}
        self.numbers = {router.name: router.as_number for router in topology.routers}
        self.neighbours: dict[str, list[Neighbour]] = {router.name: [] for router in topology.routers}

    def racks(self) -> None:
        """Each rack's bridges, and its nodes on them."""
        for n, rack in enumerate(self.topology.racks, 1):
            nodes = [node for node in self.topology.nodes if node.rack == rack.name]
            switched = len(rack.tops) > 1 and not rack.loopbacks
            if switched:
                self.switch(n, rack)
            else:
                for r, router in enumerate(rack.tops, 1):
                    self.bridges[router][f"rack{n}"] = tuple(rack_interface(n, 1, f, r) for f in self.families)
            for j, node in enumerate(nodes, 1):
                self.node(rack, n, j, node)

    def switch(self, n: int, rack: Rack) -> None:
        """A rack's routers on a switch of its own."""
        name = f"switch{n}"
        self.switches[name] = f"rack{n}"
        for r, router in enumerate(rack.tops, 1):
            own = tuple(rack_interface(n, r, f) for f in self.families)
            self.wires.append(Wire(Port(router, f"rack{n}", own), Port(name, f"r{n}t{r}", bridge=f"rack{n}")))

    def node(self, rack: Rack, n: int, j: int, node: NodeEntry) -> None:
        """One node of a rack, and its routers' sessions with it."""
        switched = len(rack.tops) > 1 and not rack.loopbacks
        uplinks = rack.tops[:1] if switched else rack.tops
        own = [tuple(rack_interface(n, 10 + j, f, r) for f in self.families) for r in range(1, len(uplinks) + 1)]
        for r, (router, addresses) in enumerate(zip(uplinks, own, strict=True)):
            top = f"switch{n}" if switched else router
            self.wires.append(Wire(Port(node.name, f"eth{r}", addresses), Port(top, f"r{n}p{j}", bridge=f"rack{n}")))
        tops = range(1, len(rack.tops) + 1)
        gateways = [
            tuple(rack_interface(n, r if switched else 1, f, 1 if switched else r).ip for f in self.families)
            for r in tops
        ]
        self.gateways[node.name] = tuple(gateway for each in gateways for gateway in each)
        self.addresses[node.name] = own[0]
        if rack.loopbacks:
            self.loopbacks[node.name] = tuple(loopback_interface(n, 10 + j, f) for f in self.families)
            self.addresses[node.name] = self.loopbacks[node.name]
        for r, router in enumerate(rack.tops):
            ways = own[r] if rack.loopbacks else (None,) * len(self.families)
            for interface, gateway, way in zip(self.addresses[node.name], gateways[r], ways, strict=True):
                self.session(router, node, interface.ip, gateway, way.ip if way else None)

    def session(self, router: str, node: NodeEntry, address: Address, local: Address, via: Address | None) -> None:
        """A router's session with a node."""
        number = self.topology.node_as(node)
        shared = [other for other in self.topology.nodes if self.topology.node_as(other) == number]
        client = number == self.numbers[router]
        self.neighbours[router].append(
            Neighbour(
                node.name,
                address,
                local,
                number,
                node=True,
                shared_as=len(shared) > 1 and not client,
                client=client,
                via=via,
            )
        )

    def links(self) -> None:
        """Links between routers, and the session over each."""
        pairs = [(lower, upper) for lower in self.topology.routers for upper in lower.uplinks]
        for k, (lower, upper) in enumerate(pairs, 1):
            above = tuple(link_interface(k, 0, f) for f in self.families)
            below = tuple(link_interface(k, 1, f) for f in self.families)
            self.wires.append(Wire(Port(lower.name, f"up{k}", below), Port(upper, f"down{k}", above)))
            for a, b in zip(above, below, strict=True):
                self.neighbours[lower.name].append(Neighbour(upper, a.ip, b.ip, self.numbers[upper], node=False))
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
            bfd=router.bfd,
            password=router.password,
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
        hosts=(
            *(each.name for each in routers),
            *(each.name for each in nodes),
            *(each.name for each in outside),
            *plan.switches,
        ),
        wires=tuple(plan.wires),
        routers={router.name: plan.router(i, router) for i, router in enumerate(topology.routers, 1)},
        gateways=plan.gateways,
        addresses=plan.addresses,
        switches=plan.switches,
        loopbacks=plan.loopbacks,
    )

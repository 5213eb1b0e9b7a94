"""What peers say, by a few words each, and a node that takes it in."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from bgp_world import node, pool

from bgp.attributes import Path
from bgp.exabgp.line import PeerOpen, Update
from bgp.model import Session, Speaker
from bgp.paths.fib import Scope
from bgp.paths.learnt import Learnt
from core.addr import Address, Family, Network
from core.prefix import Prefix
from core.resources import Resource
from core.snapshot import Snapshot
from linux.model import Facts, Link, NextHop, Route, Via

P1, P2, P3 = (ip_address(f"10.9.{number}.1") for number in (1, 2, 3))
BLOCK, OTHER = ip_network("10.244.5.0/26"), ip_network("10.244.6.0/26")


def session(peer: Address, remote_as: int = 65001, **more: Any) -> Session:
    local = ip_address(int(peer) + 1)
    return Session(
        name=str(peer),
        peer=peer,
        port=179,
        local=local,
        local_as=64512,
        remote_as=remote_as,
        hold_s=90,
        restart_s=120,
        **more,
    )


def path(next_hop: Address, *as_path: int, **more: Any) -> Path:
    return Path(next_hop=next_hop, as_path=as_path, as_path_length=len(as_path), **more)


def update(peer: Address, *prefixes: Network, withdrawn: tuple[Network, ...] = (), said: Path | None = None) -> Update:
    gone = tuple(map(Prefix.of, withdrawn))
    return Update(peer, ((said or path(peer, 65001), tuple(map(Prefix.of, prefixes))),) if prefixes else (), gone)


def graceful(peer: Address) -> PeerOpen:
    return PeerOpen(peer, 60, frozenset({Family.V4}))


def plain(peer: Address) -> PeerOpen:
    return PeerOpen(peer, 120, frozenset())


def networks(prefixes: Collection[Prefix]) -> set[Network]:
    return {prefix.network for prefix in prefixes}


LINKS = {
    name: Link(name=name, index=index, up=True, mtu=1500, addresses=(ip_interface(address),))
    for name, index, address in (("e1", 1, "10.9.1.2/24"), ("e2", 2, "10.9.2.2/24"))
}
FACTS = Facts(
    links=LINKS,
    gateways=(
        Via(destination=ip_network("0.0.0.0/0"), gateway=ip_address("10.9.1.254"), device=1),
        Via(destination=ip_network("10.50.0.0/16"), gateway=ip_address("10.9.1.253"), device=1),
        Via(destination=ip_network("10.50.0.0/16"), gateway=ip_address("10.9.2.253"), device=2),
    ),
)


def place(*resources: Resource) -> Scope:
    return Scope(Snapshot().apply(1, [(each.key, each) for each in resources]), "a")


NODES = (node("a", "10.9.1.2/24"), node("b", "10.9.1.3/24"), node("c", "10.50.1.9/24"))


def speaker(*sessions: Session, **more: Any) -> Speaker:
    us = ip_address("10.9.1.2")
    return Speaker(router_id=us, as_number=64512, port=179, listen=(us,), sessions=sessions, **more)


class Node(Learnt):
    """With what its kernel would be told."""

    def __init__(self) -> None:
        super().__init__()
        self._kernel: dict[Prefix, Route] = {}

    def routes(self) -> dict[Network, Route]:
        for prefix, route in self.take_changes().items():
            if route is None:
                self._kernel.pop(prefix, None)
            else:
                self._kernel[prefix] = route
        return {prefix.network: route for prefix, route in self._kernel.items()}


def learnt(*peers: Address, mode: str = "Never") -> Node:
    made = Node()
    made.learn_facts(FACTS)
    sessions = [session(peer, 65000 + number) for number, peer in enumerate(peers, 1)]
    made.configure(speaker(*sessions), place(*NODES, pool("main", "10.244.0.0/16", ipipMode=mode)))
    return made


def via(*gateways: Address) -> Route:
    return Route(next_hops=tuple(NextHop(gateway.packed[2], gateway) for gateway in gateways))

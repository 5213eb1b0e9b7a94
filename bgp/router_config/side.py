"""The router's side of the cluster's sessions: what a rack's router has to be told. Pure, from a snapshot.

    BGPPeers with its address as peerIP ── bgp.desired, node by node ──> a Neighbour each ─┐
    IPPools that are exported, service ranges ──> what it takes and tells                  ├─> RouterSide ─> text
    AS numbers of all nodes ──> whose path must be overridden                              ┘   bird, frr, gobgp

It asks what every node itself asks (`bgp.desired`), so both sides agree on timers, distances and who calls whom.
Passwords are taken out of the snapshot first: the text can only name the Secret.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, ip_network
from typing import Final

import msgspec

from bgp.desired import desired
from bgp.model import Bfd, Blocked, Session, Speaker
from bgp.peering.settings import asked_as, settings
from core.addr import Address, Network, order
from core.errors import Invalid, NotFound, Problem
from core.names import Key
from core.peering import applies
from core.resources import BGPConfiguration, BGPPeer, IPPool, Node, Resource
from core.resources.bgp import BGPPeerSpec
from core.snapshot import Snapshot
from core.values import peer_address

RACK: Final = "rack"
"""The label that says which rack a node stands in."""

CHANGE_ME: Final = "CHANGE-ME"
"""Stands where the password has to be put."""

FAR_HOPS: Final = 2
"""How many hops a session may take with a node that is on no link of the router's: its router, then its loopback."""


class RouterKind(StrEnum):
    """Whose configuration is written."""

    BIRD = "bird"
    FRR = "frr"
    GOBGP = "gobgp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A node's session, from the router's side.

    `peering` is the BGPPeer that asks for it. `local` is the router's address, `port` where the node listens. `far`
    says that the node's subnet does not hold the router: they are no neighbours on a link. `ttl_hops` is the greatest
    distance at which the other is believed (None: no check). `hide` asks the router to put its own AS in place of the
    node's in what it tells: another node speaks for the same AS and would take the path for a loop. `most` bounds
    the prefixes taken. `secret` names where the password lies, "" when there is none. `bfd` takes a common link (RFC
    5881), so there is none with a `far` node.
    """

    node: str
    peering: str
    address: Address
    local: Address
    as_number: int
    port: int
    hold_s: int
    restart_s: int
    far: bool = False
    ttl_hops: int | None = None
    hide: bool = False
    most: int | None = None
    secret: str = ""
    bfd: Bfd | None = None

    @property
    def keepalive_s(self) -> int:
        """A third of the hold time, as the node sends them."""
        return max(1, self.hold_s // 3)

    @property
    def distance(self) -> int:
        """How many hops away the node may be."""
        return self.ttl_hops or (FAR_HOPS if self.far else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSide:
    """What a router is told about the cluster. `port` is where it listens; `taken` bounds what it takes from nodes,
    `told` what it tells them; `blocked` are sentences about sessions that their nodes hold down."""

    addresses: tuple[Address, ...]
    as_number: int
    port: int
    neighbours: tuple[Neighbour, ...]
    taken: tuple[Network, ...]
    told: tuple[Network, ...]
    blocked: tuple[str, ...] = ()

    @property
    def router_id(self) -> IPv4Address:
        """Its IPv4 address, or a number made from its first address."""
        own = next((each for each in self.addresses if isinstance(each, IPv4Address)), None)
        return own or IPv4Address(int.from_bytes(hashlib.sha256(self.addresses[0].packed).digest()[:4]) or 1)

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions of its sessions."""
        return tuple(sorted({each.address.version for each in self.neighbours}))

    def internal(self, neighbour: Neighbour) -> bool:
        """Whether the session is iBGP: the router then reflects (RFC 4456)."""
        return neighbour.as_number == self.as_number


def head(side: RouterSide, mark: str, router: str) -> Iterator[str]:
    """What every text begins with; `mark` begins a comment."""
    at, nodes = ", ".join(map(str, side.addresses)), len({each.node for each in side.neighbours})
    noun = "node" if nodes == 1 else "nodes"
    yield f"{mark} {router} at {at}, AS {side.as_number}: its sessions with {nodes} {noun}."
    if any(each.secret for each in side.neighbours):
        yield f"{mark} Put the passwords where it says {CHANGE_ME}: they are in the Secrets that are named there."
    yield from (f"{mark} held down by the node: {each}" for each in side.blocked)


def rack_router(snapshot: Snapshot, rack: str) -> tuple[Address, ...]:
    """The addresses of the one router that the nodes labelled `rack` peer with, one of each IP version.

    Raises `NotFound` when there is none, and `Invalid`, which names them, when there are several.
    """
    racks: dict[str, list[Node]] = {}
    for node in snapshot.of(Node).values():
        racks.setdefault(node.metadata.labels.get(RACK, ""), []).append(node)
    if not rack or rack not in racks:
        known = ", ".join(sorted(filter(None, racks))) or "none"
        raise NotFound(f"no Node has the label {RACK}={rack}; there are {known}")
    peers = _with_address(snapshot)
    found = {session.peer for node in racks[rack] for session in _speaker(snapshot, node, peers).sessions}
    addresses = tuple(sorted(found, key=lambda each: (each.version, int(each))))
    if not addresses:
        raise NotFound(f"no BGPPeer with a peerIP takes in the nodes of rack {rack}")
    if len({each.version for each in addresses}) < len(addresses):
        several = ", ".join(map(str, addresses))
        why = f"its nodes peer with {several}; say which with --router, once for each address of the router"
        raise Invalid([Problem(what=f"rack {rack}", why=why)])
    return addresses


def router_side(snapshot: Snapshot, addresses: Sequence[Address]) -> RouterSide:
    """What the router at `addresses` (one of each IP version) is told.

    Raises `NotFound` when no node peers with it, and `Invalid` when BGPPeers give it more than one AS or port.
    """
    peers = {key: peer for key, peer in _with_address(snapshot).items() if _peer(peer) in addresses}
    told = [
        (node, speaker)
        for _, node in sorted(snapshot.of(Node).items())
        if (speaker := _speaker(snapshot, node, peers)).sessions or speaker.blocked
    ]
    spoken = _spoken(snapshot)
    sessions = [(node, speaker, session) for node, speaker in told for session in speaker.sessions]
    if not sessions:
        blocked = "".join(f"; {each}" for each in _blocked(told))
        raise NotFound(f"no node has a session with {', '.join(map(str, addresses))}{blocked}")
    where = ", ".join(map(str, addresses))
    pools = _pools(snapshot)
    return RouterSide(
        addresses=tuple(addresses),
        as_number=_one(where, "asNumber", ((session.remote_as, session.name) for _, _, session in sessions)),
        port=_one(where, "port", ((session.port, session.name) for _, _, session in sessions)),
        neighbours=tuple(_neighbour(*each, snapshot, spoken) for each in sessions),
        taken=tuple(sorted({*pools, *_services(snapshot)}, key=order)),
        told=pools,
        blocked=tuple(_blocked(told)),
    )


def _with_address(snapshot: Snapshot) -> Mapping[Key, Resource]:
    """BGPPeers with a peerIP, without what the router's side does not depend on: the password's value, and filters."""
    return {
        key: msgspec.structs.replace(peer, spec=msgspec.structs.replace(peer.spec, password=None, filters=[]))
        for key, peer in snapshot.of(BGPPeer).items()
        if peer.spec.peer_ip
    }


def _peer(peer: Resource) -> Address | None:
    assert isinstance(peer, BGPPeer)
    try:
        return peer_address(peer.spec.peer_ip)[0]
    except ValueError:
        return None


def _speaker(snapshot: Snapshot, node: Node, peers: Mapping[Key, Resource]) -> Speaker:
    """What `node` wants of these peers, as if it were alone: nothing of the mesh, nothing of other nodes."""
    own = {Node.KIND: {node.key: node}, BGPPeer.KIND: peers}
    tables = {BGPConfiguration.KIND: snapshot.tables.get(BGPConfiguration.KIND, {}), **own}
    try:
        return desired(Snapshot(revision=snapshot.revision, tables=tables), node.metadata.name)
    except Invalid as error:
        blocked = Blocked(name=f"Node/{node.metadata.name}", peer="", remote_as=0, reason=str(error))
        return Speaker(router_id=IPv4Address(0), as_number=0, port=0, listen=(), blocked=(blocked,) if peers else ())


def _blocked(told: Iterable[tuple[Node, Speaker]]) -> Iterator[str]:
    for node, speaker in told:
        yield from (f"{node.metadata.name}: {each.name}: {each.reason}" for each in speaker.blocked)


def _spoken(snapshot: Snapshot) -> Counter[int]:
    """How many nodes speak for each AS number: it is their own, or a BGPPeer's localASNumber gives it to them."""
    lending = [peer.spec for peer in snapshot.of(BGPPeer).values() if peer.spec.local_as_number]
    return Counter(
        number for node in snapshot.of(Node).values() for number in set(_speaks_for(snapshot, node, lending))
    )


def _speaks_for(snapshot: Snapshot, node: Node, lending: Iterable[BGPPeerSpec]) -> Iterator[int]:
    """What cannot be read, its own or a BGPPeer's, opens no session and counts for nothing."""
    with contextlib.suppress(ValueError):
        yield settings(snapshot, node).as_number
    for spec in lending:
        with contextlib.suppress(ValueError):
            if applies(spec, node):
                yield asked_as(spec.local_as_number)


def _one(where: str, field: str, said: Iterable[tuple[int, str]]) -> int:
    """The one value that all say."""
    by_value: dict[int, str] = {}
    for value, name in said:
        by_value.setdefault(value, name)
    if len(by_value) > 1:
        why = ", ".join(f"{value} in {name}" for value, name in by_value.items())
        raise Invalid([Problem(what=f"BGPPeers with {where}", path=f"spec.{field}", why=f"they differ: {why}")])
    return next(iter(by_value))


def _neighbour(node: Node, speaker: Speaker, session: Session, snapshot: Snapshot, spoken: Counter[int]) -> Neighbour:
    version = session.peer.version
    address = session.local or next(each for each in speaker.addresses if each.version == version)
    subnet = node.subnet(version)
    far = subnet is None or session.peer not in subnet
    return Neighbour(
        node=node.metadata.name,
        peering=session.name,
        address=address,
        local=session.peer,
        as_number=session.local_as,
        port=speaker.port,
        hold_s=session.hold_s,
        restart_s=session.restart_s,
        far=far,
        ttl_hops=session.ttl_hops,
        hide=spoken[session.local_as] > 1 and not session.internal and not session.own_as_allowed,
        most=session.most_out,
        secret=_secret(snapshot, session.name),
        bfd=None if far else session.bfd,
    )


def _secret(snapshot: Snapshot, name: str) -> str:
    peer = snapshot.get(BGPPeer, name.partition("/")[2])
    reference = peer.spec.password.secret_key_ref if peer and peer.spec.password else None
    return f"key {reference.key} of Secret {reference.name}" if reference else ""


def _pools(snapshot: Snapshot) -> tuple[Network, ...]:
    """Those that nodes tell routers of, as `bgp.telling.originate` sees it."""
    specs = [pool.spec for pool in snapshot.of(IPPool).values()]
    exported = (spec.network for spec in specs if not spec.disabled and not spec.disable_bgp_export)
    return tuple(sorted(exported, key=order))


def _services(snapshot: Snapshot) -> Iterator[Network]:
    configuration = snapshot.get(BGPConfiguration, "default")
    if configuration:
        spec = configuration.spec
        for entry in (*spec.service_cluster_ips, *spec.service_external_ips, *spec.service_load_balancer_ips):
            yield ip_network(entry.cidr)

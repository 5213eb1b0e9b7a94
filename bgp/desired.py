"""The speaker a node should have: pure, from a snapshot.

    BGPPeers ───────────────── bgp.peers ───────┐
    nodeToNodeMeshEnabled ──── bgp.mesh ────────┴─> sessions by address, the first keeps it; the others are blocked
    IPAMBlocks, Services ───── bgp.originate ───> what it says of its own prefixes
    Node, BGPConfiguration ─── bgp.settings ────> who it is

A session whose peer is named and cannot be had exactly as written (a filter, a password, an address that lacks) is
blocked with the reason: an unfiltered session in its place would be open where somebody asked for closed. What
decides on everything (the node itself, its BGPConfiguration) and cannot be read is an error, and nothing is changed:
the defaults in its place would be another cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bgp.model import Blocked, Maintenance, Session, Speaker
from bgp.peering.mesh import mesh
from bgp.peering.peers import peers
from bgp.peering.settings import Settings, settings
from bgp.telling.originate import originated
from core.addr import Address
from core.errors import Invalid, NotFound, Problem
from core.names import Key
from core.resources import BGPConfiguration, Node
from core.snapshot import Snapshot
from linux.model import Facts


def desired(snapshot: Snapshot, name: str) -> Speaker:
    """The speaker of node `name`. Raises `NotFound` or `Invalid` when the node itself is missing, or it or its
    configuration wrong: then nothing should be changed."""
    _check_read(snapshot, name)
    node = snapshot.get(Node, name)
    if node is None:
        raise NotFound(f"there is no Node {name}; apply one, with its addresses in spec.bgp")
    try:
        ours = settings(snapshot, node)
        maintenance = Maintenance(node.spec.bgp.maintenance if node.spec.bgp else "")
    except ValueError as error:
        raise Invalid([Problem(what=f"Node {name} or its BGPConfiguration", why=str(error))]) from error
    sessions, blocked = _apart([*peers(snapshot, node, ours), *mesh(snapshot, node, ours)])
    said = originated(snapshot, name)
    return Speaker(
        router_id=ours.router_id,
        as_number=ours.as_number,
        port=ours.port,
        listen=_listen(ours, sessions),
        addresses=ours.addresses,
        sessions=tuple(sessions),
        blocked=tuple(blocked),
        own=said.own,
        pools=said.pools,
        cluster_id=ours.cluster_id,
        maintenance=maintenance,
        problems=(*_not_followed(snapshot, name), *said.problems),
    )


def absent(speaker: Speaker, facts: Facts) -> tuple[str, ...]:
    """A sentence for each address of the speaker's that no link of this host has: no session can start from it."""
    present = {interface.ip for link in facts.links.values() for interface in link.addresses}
    node = {address: f"Node spec.bgp.ipv{address.version}Address" for address in speaker.addresses}
    pods = {
        session.local: f"BGPConfiguration spec.localWorkloadPeeringIPV{session.local.version}; felix gives it to lo"
        for session in speaker.sessions
        if session.local is not None and session.local not in node
    }
    return tuple(
        f"this host has no address {address} ({where})"
        for address, where in {**node, **pods}.items()
        if address not in present
    )


def _check_read(snapshot: Snapshot, name: str) -> None:
    deciding = (
        Key(Node.KIND, "", name),
        Key(BGPConfiguration.KIND, "", "default"),
        Key(BGPConfiguration.KIND, "", f"node.{name}"),
    )
    unread = [Problem(what=str(key), why=snapshot.problems[key]) for key in deciding if key in snapshot.problems]
    if unread:
        raise Invalid(unread)


def _apart(outcomes: Iterable[Session | Blocked]) -> tuple[list[Session], list[Blocked]]:
    """One session an address: ExaBGP, like every speaker, tells peers apart by theirs."""
    sessions: dict[Address, Session] = {}
    blocked: list[Blocked] = []
    for outcome in outcomes:
        if isinstance(outcome, Blocked):
            blocked.append(outcome)
        elif outcome.peer in sessions:
            reason = f"{sessions[outcome.peer].name} has a session with this address already"
            peer, remote_as = str(outcome.peer), outcome.remote_as
            blocked.append(Blocked(name=outcome.name, peer=peer, remote_as=remote_as, reason=reason))
        else:
            sessions[outcome.peer] = outcome
    return list(sessions.values()), blocked


def _listen(ours: Settings, sessions: Iterable[Session]) -> tuple[Address, ...]:
    """The node's addresses or, unless it is bound to those, any; and those that its own pods call."""
    called = (session.local for session in sessions if session.local is not None)
    anywhere = {type(address)(0) for address in ours.listen} & set(ours.listen)
    more = [address for address in called if address not in ours.addresses and type(address)(0) not in anywhere]
    return tuple(dict.fromkeys((*ours.listen, *more)))


def _not_followed(snapshot: Snapshot, name: str) -> Iterator[str]:
    """What BGPConfigurations set and muslin does not do, or does another way.

    `ignoredInterfaces` asks that addresses of some interfaces are not told; those of no interface are.
    """
    for which in ("default", f"node.{name}"):
        found = snapshot.get(BGPConfiguration, which)
        if found is None:
            continue
        spec, where = found.spec, f"BGPConfiguration {which}"
        if spec.log_severity_screen not in ("", "Info"):
            yield f"{where}: logSeverityScreen is not followed; --log-level of `muslin bgp` says what is logged"
        if spec.program_cluster_routes not in (None, "", "EnabledNoEncapOnly"):
            yield (
                f"{where}: programClusterRoutes is not followed; who writes the route to a remote block follows from"
                " its IPPool's encapsulation"
            )
        if which != "default" and (
            spec.node_to_node_mesh_enabled is not None or spec.node_mesh_password or spec.node_mesh_max_restart_time
        ):
            yield f"{where}: the mesh is one for all nodes; what is set of it here is not followed, only in default"

"""What only several objects together can get wrong, judged on the state that a transaction would leave behind.

    changes ── needs ──> kinds ── read them ──> existing ── check ──> problems
       └────── relies ──> objects that must still be there when the changes are written

`changes` maps a key to its new resource, or to None when it is deleted. A transaction is judged as a whole: replacing
a pool by two halves of it, or creating a tier together with its policies, is as sound as it will be when it is done.
Single objects are taken as valid (`core.validate`); what is valid, and yet not to be written, is `check_alone`'s.

In `existing`, None is an object that cannot be read. It keeps nobody from creating or changing other things; but what
it may be using is not deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar, cast

from core.addr import Address, contains, overlap
from core.errors import Problem
from core.names import TUNNEL_HANDLE, Key, Kind
from core.resources import (
    BGPPeer,
    GlobalNetworkPolicy,
    IPAMBlock,
    IPAMHandle,
    IPPool,
    NetworkPolicy,
    Node,
    Resource,
    StagedGlobalNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
)
from core.resources.policy import BUILT_IN_TIERS
from core.selector import parse
from core.validate.ipam import oddly_spelt
from core.values import peer_address

Changes: TypeAlias = Mapping[Key, Resource | None]
Existing: TypeAlias = Mapping[Kind, Mapping[Key, Resource | None]]

InTier: TypeAlias = NetworkPolicy | GlobalNetworkPolicy | StagedNetworkPolicy | StagedGlobalNetworkPolicy

POLICIES: Final[tuple[type[InTier], ...]] = (
    NetworkPolicy,
    GlobalNetworkPolicy,
    StagedNetworkPolicy,
    StagedGlobalNetworkPolicy,
)
"""The kinds that name their tier; what is staged is judged as what it stands for."""

USERS: Final[Mapping[type[Resource], frozenset[Kind]]] = MappingProxyType(
    {
        IPPool: frozenset({IPAMBlock.KIND}),
        Node: frozenset({IPAMBlock.KIND}),
        Tier: frozenset(policy.KIND for policy in POLICIES),
    }
)
"""What does not go while it is in use, and the kinds of the objects that use it."""

_T = TypeVar("_T", bound=Resource)


def needs(changes: Changes) -> frozenset[Kind]:
    """The kinds that must be read to judge `changes`; none for most (pods, blocks, statuses)."""
    kinds: set[Kind] = set()
    freeing = any(isinstance(resource, IPAMBlock) for resource in changes.values())  # IPAM gives back: handle and block
    for key, resource in changes.items():
        if key.kind == IPPool.KIND:
            kinds |= {IPPool.KIND} if resource is not None else {IPPool.KIND, *USERS[IPPool]}
        elif key.kind in (IPAMBlock.KIND, Node.KIND) and resource is None:
            kinds |= {IPAMBlock.KIND, Node.KIND}
        elif key.kind == IPAMHandle.KIND and resource is None and not freeing:
            kinds |= {IPAMBlock.KIND, IPAMHandle.KIND}
        elif isinstance(resource, POLICIES) and resource.spec.tier not in BUILT_IN_TIERS:
            kinds.add(Tier.KIND)
        elif key.kind == Tier.KIND and resource is None:
            kinds |= {Tier.KIND, *USERS[Tier]}
        elif isinstance(resource, BGPPeer) and resource.spec.peer_ip:
            kinds |= {BGPPeer.KIND, Node.KIND}
    return frozenset(kinds)


def relies(changes: Changes) -> frozenset[Key]:
    """Objects without which `changes` would not be sound, but for those that `changes` writes."""
    tiers = {policy.spec.tier for cls in POLICIES for policy in _put(cls, changes).values()} - set(BUILT_IN_TIERS)
    return frozenset(Key(Tier.KIND, "", name) for name in tiers) - changes.keys()


def check_alone(changes: Changes) -> list[Problem]:
    """What is wrong with writing any of `changes`, whatever else there is, that a reader copes with."""
    written = ((key, resource) for key, resource in changes.items() if isinstance(resource, IPAMBlock | IPAMHandle))
    return [_problem(key, each.path, each.why) for key, resource in written for each in oddly_spelt(resource)]


def check(changes: Changes, existing: Existing) -> list[Problem]:
    """What is wrong with the state after `changes`; `existing` holds every object of the kinds in `needs(changes)`."""
    return [problem for rule in RULES for problem in rule(changes, existing)]


def _pools_overlap(changes: Changes, existing: Existing) -> Iterator[Problem]:
    pools = _after(IPPool, changes, existing)
    told: set[frozenset[Key]] = set()
    for key in _put(IPPool, changes):
        for other, pool in pools.items():
            mine, theirs = pools[key].spec.network, pool.spec.network
            pair = frozenset((key, other))
            if other != key and pair not in told and overlap(mine, theirs):
                told.add(pair)
                yield _problem(key, "spec.cidr", f"{mine} overlaps {theirs} of IPPool/{other.name}")


def _pools_stay(changes: Changes, existing: Existing) -> Iterator[Problem]:
    """A pool's blocks are cut from its cidr with its blockSize: neither can change under them."""
    before = _of(IPPool, existing)
    for key, pool in _put(IPPool, changes).items():
        was = before.get(key)
        if was is None:
            continue
        if pool.spec.network != was.spec.network:
            why = f"cannot change (it is {was.spec.cidr}); create another pool, move the pods, delete this one"
            yield _problem(key, "spec.cidr", why)
        elif pool.spec.block_length != was.spec.block_length:
            why = f"cannot change (it is {was.spec.block_length}); create another pool, move the pods, delete this one"
            yield _problem(key, "spec.blockSize", why)


def _pools_end(changes: Changes, existing: Existing) -> Iterator[Problem]:
    """Who counts on a pool's end, as he has seen it begin, counts on it rightly."""
    before = _of(IPPool, existing)
    for key, pool in _put(IPPool, changes).items():
        was = before.get(key)
        if was is not None and was.terminating and not pool.terminating:
            since = f"it is being deleted since {was.metadata.deletion_timestamp} and goes with its last address"
            why = f"{since}; that cannot be taken back. Write it again when it has gone, or under another name and cidr"
            yield _problem(key, "metadata.deletionTimestamp", why)


def _pools_in_use(changes: Changes, existing: Existing) -> Iterator[Problem]:
    """A pool that goes must not leave addresses behind that no pool holds."""
    left = [pool.spec.network for pool in _after(IPPool, changes, existing).values()]
    blocks = [block.spec for block in _after(IPAMBlock, changes, existing).values() if block.spec.allocations]
    for key in _gone(IPPool, changes, existing):
        pool = _of(IPPool, existing).get(key)
        held = {
            address: handle
            for block in blocks
            if pool is None or contains(pool.spec.network, block.network)  # any may be of a pool that cannot be read
            if not any(contains(net, block.network) for net in left)
            for address, handle in block.allocations.items()
        }
        if held:
            yield _problem(key, "", f"{_in_use(held)}; `muslin delete` ends it when they are free")


def _blocks_in_use(changes: Changes, existing: Existing) -> Iterator[Problem]:
    """IPAM would give the addresses of a block that goes to other pods. Only deleting is judged: IPAM writes freely."""
    left = existing.get(Node.KIND, {}).keys() - set(_gone(Node, changes, existing))
    tunnels = {f"{TUNNEL_HANDLE}{key.name}" for key in left}
    blocks = _of(IPAMBlock, existing)
    for key in blocks.keys() & set(_gone(IPAMBlock, changes, existing)):
        held = {
            address: handle
            for address, handle in blocks[key].spec.allocations.items()
            if not handle.startswith(TUNNEL_HANDLE) or handle in tunnels  # else of a node that is gone
        }
        if held:
            yield _problem(key, "", f"{_in_use(held)}; remove the pods first, or `muslin ipam release` what no pod has")


def _nodes_in_use(changes: Changes, existing: Existing) -> Iterator[Problem]:
    """A node that goes must not leave pods behind: their routes would go with it. Its own tunnel's address may stay."""
    blocks = _after(IPAMBlock, changes, existing).values()
    for key in _gone(Node, changes, existing):
        held = {
            address: handle
            for block in blocks
            for address, handle in block.spec.allocations.items()
            if block.spec.borrowers.get(address, block.spec.node) == key.name
            if handle != f"{TUNNEL_HANDLE}{key.name}"
        }
        if held:
            why = f"remove its pods first; if its machine is gone for good, `muslin node remove {key.name}`"
            yield _problem(key, "", f"{_in_use(held)}; {why}")


def _handles_in_use(changes: Changes, existing: Existing) -> Iterator[Problem]:
    """A handle that goes alone would leave addresses behind of which nobody knows whose they are."""
    readable = _of(IPAMHandle, existing)
    gone = {readable[key].spec.handle_id: key for key in _gone(IPAMHandle, changes, existing) if key in readable}
    held: dict[Key, dict[str, str]] = {}
    for block in _after(IPAMBlock, changes, existing).values():
        for address, handle in block.spec.allocations.items():
            if handle in gone:
                held.setdefault(gone[handle], {})[address] = handle
    for key, addresses in held.items():
        why = f"it holds {', '.join(sorted(addresses))}; `muslin ipam release` gives an address back with its handle"
        yield _problem(key, "", why)


def _in_use(held: Mapping[str, str]) -> str:
    address, handle = min(held.items())
    return f"{len(held)} of its addresses are in use ({address} by {handle})"


def _tiers_exist(changes: Changes, existing: Existing) -> Iterator[Problem]:
    tiers = {key.name for key in _after(Tier, changes, existing)} | set(BUILT_IN_TIERS)
    for cls in POLICIES:
        for key, policy in _put(cls, changes).items():
            if policy.spec.tier not in tiers:
                why = f"there is no tier {policy.spec.tier!r}; create it first, or in the same apply"
                yield _problem(key, "spec.tier", why)


def _tiers_in_use(changes: Changes, existing: Existing) -> Iterator[Problem]:
    """Built-in tiers exist without their object, so that one may go."""
    gone = {key.name: key for key in _gone(Tier, changes, existing)}
    users: dict[str, list[str]] = {}
    for cls in POLICIES:
        for key, policy in _after(cls, changes, existing).items():
            users.setdefault(policy.spec.tier, []).append(str(key))
    for name, key in gone.items():
        if name not in BUILT_IN_TIERS and name in users:
            others = f" and {len(users[name]) - 1} more" if len(users[name]) > 1 else ""
            yield _problem(key, "", f"is the tier of {min(users[name])}{others}; delete or move them first")


def _users_known(changes: Changes, existing: Existing) -> Iterator[Problem]:
    """Nobody can tell what an object that cannot be read is using."""
    for cls, users in USERS.items():
        unread = (key for kind in users for key, found in existing.get(kind, {}).items() if found is None)
        unknown = min((key for key in unread if key not in changes), default=None)
        for key in _gone(cls, changes, existing):
            if unknown is not None and (cls is not Tier or key.name not in BUILT_IN_TIERS):
                yield _problem(key, "", f"{unknown} cannot be read and may be using it; mend or delete that first")


def _peers_apart(changes: Changes, existing: Existing) -> Iterator[Problem]:
    """One node has one session with one address, whatever its port. Nodes are judged by their labels of now: those
    that come to share an address when their labels change hold one session, and say of the other why not."""
    nodes = _after(Node, changes, existing)
    by_address: dict[Address, dict[Key, BGPPeer]] = {}
    for key, peer in _after(BGPPeer, changes, existing).items():
        if peer.spec.peer_ip:
            by_address.setdefault(peer_address(peer.spec.peer_ip)[0], {})[key] = peer
    told: set[frozenset[Key]] = set()
    chosen: dict[Key, frozenset[str]] = {}  # a selector is held against the nodes once, however many share the address

    def chosen_by(key: Key, peer: BGPPeer) -> frozenset[str]:
        if key not in chosen:
            chosen[key] = _chosen(peer, nodes)
        return chosen[key]

    for key, peer in _put(BGPPeer, changes).items():
        address = peer_address(peer.spec.peer_ip)[0] if peer.spec.peer_ip else None
        for other, theirs in by_address[address].items() if address else ():
            pair = frozenset((key, other))
            if other == key or pair in told:
                continue
            shared = _shared_node(peer, theirs) or _named(chosen_by(key, peer) & chosen_by(other, theirs))
            if shared is not None:
                told.add(pair)
                yield _problem(key, "spec.peerIP", f"BGPPeer/{other.name} peers {shared} with {address} already")


def _shared_node(one: BGPPeer, other: BGPPeer) -> str | None:
    """A node that both peers are for, in words, as far as it follows from themselves."""
    if not (one.spec.node or one.spec.node_selector) or not (other.spec.node or other.spec.node_selector):
        narrow = other if not (one.spec.node or one.spec.node_selector) else one
        return f"node {narrow.spec.node}" if narrow.spec.node else "every node it selects"
    if one.spec.node and other.spec.node:
        return f"node {one.spec.node}" if one.spec.node == other.spec.node else None
    if one.spec.node_selector and parse(one.spec.node_selector) == parse(other.spec.node_selector or "!all()"):
        return "the same nodes"
    return None


def _named(nodes: frozenset[str]) -> str | None:
    return f"node {min(nodes)}" if nodes else None


def _chosen(peer: BGPPeer, nodes: Mapping[Key, Node]) -> frozenset[str]:
    """The names of the nodes that a peer which says which is for."""
    if peer.spec.node:
        return frozenset({peer.spec.node} if Key(Node.KIND, "", peer.spec.node) in nodes else ())
    selector = parse(peer.spec.node_selector)
    return frozenset(node.metadata.name for node in nodes.values() if selector.matches(node.metadata.labels))


RULES: Final[tuple[Callable[[Changes, Existing], Iterator[Problem]], ...]] = (
    _pools_overlap,
    _pools_stay,
    _pools_end,
    _pools_in_use,
    _blocks_in_use,
    _nodes_in_use,
    _handles_in_use,
    _tiers_exist,
    _tiers_in_use,
    _users_known,
    _peers_apart,
)


def _of(cls: type[_T], existing: Existing) -> Mapping[Key, _T]:
    """Those that can be read."""
    there = existing.get(cls.KIND, {})
    return {key: cast("_T", found) for key, found in there.items() if found is not None}


def _gone(cls: type[Resource], changes: Changes, existing: Existing) -> Iterator[Key]:
    """What the changes delete and is there."""
    return (key for key in existing.get(cls.KIND, {}) if key in changes and changes[key] is None)


def _put(cls: type[_T], changes: Changes) -> dict[Key, _T]:
    return {key: resource for key, resource in changes.items() if isinstance(resource, cls)}


def _after(cls: type[_T], changes: Changes, existing: Existing) -> dict[Key, _T]:
    """Every object of a class as the changes would leave them."""
    kept = {key: resource for key, resource in _of(cls, existing).items() if key not in changes}
    return kept | _put(cls, changes)


def _problem(key: Key, path: str, why: str) -> Problem:
    what = "/".join(part for part in (key.kind.name, key.namespace, key.name) if part)
    return Problem(what=what, path=path, why=why)

"""Which blocks, affinities and pools have come to their end.

    empty block   its pool ends, or is gone                at once     (another node's: after a grace)
                  this node's, its pool serves the node    after a grace, if another block of the node stays there
                  this node's, no pool serves it there     after a grace
                  of a node that is gone, or nobody's      after a grace, or later (`Scene.rank`)
    used block    of a node that is gone                   becomes nobody's
    affinity      of a block that is not there or is another node's: a claim that was given up in the middle
    pool          that is being deleted and has no block left

A block whose freed addresses rest is not empty yet: with it the memory of them would go.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from core import selector
from core.addr import contains, order, overlap
from core.names import Key
from core.resources import BlockAffinity, IPAMBlock, IPAMConfiguration, IPPool, Node, R
from datastore.ipam.block import block_name, given_to, rested_since, resting, stamp
from datastore.ipam.collecting.collect import Candidate, Scene, Subject, Witness
from datastore.ipam.listing.ending import ending
from datastore.ipam.listing.holders import Held, Holdings
from datastore.ipam.model import ON_NODES, Remove, Step, Write


def candidates(scene: Scene) -> Iterator[Candidate]:
    """Everything that is at its end."""
    yield from _blocks(scene)
    yield from _left_behind(scene)
    yield from _affinities(scene)
    yield from _pools(scene)


def _blocks(scene: Scene) -> Iterator[Candidate]:
    stays = _staying(scene)
    for held in scene.holdings.of(IPAMBlock).values():
        block = held.resource
        if block.spec.allocations or held in stays or (block.spec.affinity and not block.spec.node):
            continue
        patience, why = _end_of(scene, block)
        if patience is None or _claim_unread(scene, block):
            continue
        claims = _claims(scene, block)
        yield Candidate(
            subject=Subject(f"block {block.spec.cidr}"),
            why=why,
            witness=_witness(held),
            patience=patience,
            step=Step(changes=(_removal(held), *(_removal(each) for each in claims))),
        )


def _end_of(scene: Scene, block: IPAMBlock) -> tuple[int | None, str]:
    """After how many graces an empty block goes (None: it stays), and why."""
    owner, network = block.spec.node, block.spec.network
    pool = scene.holdings.pool_of(network)
    rank = scene.rank(owner or block.metadata.name)
    others = None if rank is None else 1 + rank
    if pool is None and scene.holdings.unread_of(IPPool):
        return None, ""
    if pool is None or pool.resource.terminating:
        why = "it is empty and its pool is being deleted" if pool else "it is empty and lies in no pool"
        return (0 if owner == scene.node else others), why
    if rests(scene.holdings, block, scene.now):
        return None, ""
    if owner == scene.node:
        return 1, "it is empty"
    if owner in scene.holdings.nodes:
        return None, ""
    return others, f"it is empty and its node {owner} is gone" if owner else "it is empty and nobody's"


def _left_behind(scene: Scene) -> Iterator[Candidate]:
    """Blocks of nodes that are gone in which addresses are held, or rest: they become nobody's, and may be claimed.

    What is held stays with the nodes that it is used on.
    """
    for held in scene.holdings.of(IPAMBlock).values():
        block, owner = held.resource, held.resource.spec.node
        rank = scene.rank(owner)
        used = block.spec.allocations or rests(scene.holdings, block, scene.now)
        if not used or not owner or {owner} & {*scene.holdings.nodes, scene.node} or rank is None:
            continue
        if _claim_unread(scene, block):
            continue
        claims = _claims(scene, block)
        yield Candidate(
            subject=Subject(f"owner {block.spec.cidr}"),
            why=f"its node {owner} is gone",
            witness=tuple(pair for claim in claims for pair in _witness(claim)),
            patience=1 + rank,
            step=Step(
                changes=(Write(given_to(block, ""), held.revision), *(_removal(claim) for claim in claims)),
            ),
        )


def rests(seen: Holdings, block: IPAMBlock, now: datetime) -> bool:
    """Whether any of a block's freed addresses may not be given yet, or that cannot be told."""
    if not block.spec.freed:
        return False
    if seen.unread_of(IPAMConfiguration):
        return True
    settings = [held.resource.spec.ip_cooldown_seconds for held in seen.of(IPAMConfiguration).values()]
    return resting(block, rested_since(now, max(settings, default=0)))


def _staying(scene: Scene) -> list[Held[IPAMBlock]]:
    """The block that this node keeps of each pool that serves it, where it has none that is in use: the first."""
    own = [held for held in scene.holdings.of(IPAMBlock).values() if held.resource.spec.node == scene.node]
    own.sort(key=lambda held: order(held.resource.spec.network))
    kept: list[Held[IPAMBlock]] = []
    for pool in scene.holdings.of(IPPool).values():
        if _serves(scene, pool.resource):
            network = pool.resource.spec.network
            there = [held for held in own if contains(network, held.resource.spec.network)]
            if not any(held.resource.spec.allocations for held in there):
                kept += there[:1]
    return kept


def _serves(scene: Scene, pool: IPPool) -> bool:
    """Whether pods or the tunnel of this node may get addresses of the pool. A Node that cannot be read may."""
    spec = pool.spec
    if pool.terminating or spec.disabled or not {*(spec.allowed_uses or ON_NODES)} & {*ON_NODES}:
        return False
    mine = scene.holdings.of(Node).get(Key(Node.KIND, "", scene.node))
    return mine is None or selector.parse(spec.node_selector).matches(mine.resource.metadata.labels)


def _claims(scene: Scene, block: IPAMBlock) -> tuple[Held[BlockAffinity], ...]:
    """The owner's affinity to the block."""
    return tuple(
        held
        for held in scene.holdings.of(BlockAffinity).values()
        if held.resource.spec.network == block.spec.network and held.resource.spec.owner == block.spec.owner
    )


def _claim_unread(scene: Scene, block: IPAMBlock) -> bool:
    name = block_name(block.spec.network)
    return any(entry.key.name.endswith(name) for entry in scene.holdings.unread_of(BlockAffinity))


def _affinities(scene: Scene) -> Iterator[Candidate]:
    owners = {held.resource.spec.network: held.resource.spec.owner for held in scene.holdings.of(IPAMBlock).values()}
    unread = {entry.key.name for entry in scene.holdings.unread_of(IPAMBlock)}
    for held in scene.holdings.of(BlockAffinity).values():
        spec = held.resource.spec
        if owners.get(spec.network) == spec.owner or block_name(spec.network) in unread or spec.type != "host":
            continue
        rank = 0 if spec.node == scene.node else scene.rank(spec.node)
        if rank is None or (spec.node != scene.node and spec.node in scene.holdings.nodes):
            continue
        yield Candidate(
            subject=Subject(f"affinity {held.resource.metadata.name}"),
            why=f"{spec.node} has not that block",
            witness=_witness(held),
            patience=1 + rank,
            step=Step(changes=(_removal(held),)),
        )


def _pools(scene: Scene) -> Iterator[Candidate]:
    blocks = [held.resource.spec.network for held in scene.holdings.of(IPAMBlock).values()]
    for held in scene.holdings.of(IPPool).values():
        pool, rank = held.resource, scene.rank(held.resource.metadata.name)
        others = set(pool.metadata.finalizers) - {IPPool.FINALIZER}
        if not pool.terminating or others or rank is None or any(overlap(pool.spec.network, each) for each in blocks):
            continue
        end = ending(held, scene.holdings, stamp(scene.now))
        if end.over:
            yield Candidate(
                subject=Subject(f"pool {pool.metadata.name}"),
                why="it is being deleted and its last block is gone",
                witness=_witness(held),
                patience=rank,
                step=end.step,
            )


def _removal(held: Held[R]) -> Remove:
    return Remove(held.resource.key, held.revision)


def _witness(held: Held[R]) -> Witness:
    return ((held.resource.key, held.revision),)

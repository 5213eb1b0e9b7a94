"""A node that is gone for good: what of IPAM goes with it, and in which steps. Pure.

    endpoints of the node   ── go
    what the node holds     ── is free: pods' addresses and its tunnels', in its own blocks and borrowed ones
    its blocks and claims   ── empty ones go; one that other nodes have addresses of, or that rests, becomes nobody's
    then nothing keeps the Node itself

A collector does none of this for a Node that is still there: its machine may be back in a minute. So a person has to
say it. Each step is one transaction that compares with what it was decided on; the next is decided on a new reading.
What another node, or anybody unknown, may have to do with is an obstacle, and nothing goes while there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from core.names import Key
from core.resources import BlockAffinity, IPAMBlock, R, WorkloadEndpoint
from datastore.ipam.block import given_to
from datastore.ipam.collecting.idle import rests
from datastore.ipam.collecting.unused import freeing
from datastore.ipam.listing.holders import Held, Holder, Holdings
from datastore.ipam.listing.uses import Uses
from datastore.ipam.model import Change, Remove, Step, Write

WHY: Final = "node remove"
"""What the records of the addresses say."""

AT_ONCE: Final = 16
"""Holders, endpoints or blocks that one transaction takes; each is up to six operations, and etcd takes 128."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """What is `node`'s; `obstacles` say, a sentence each, why none of it may go yet."""

    node: str
    endpoints: tuple[Held[WorkloadEndpoint], ...]
    holders: tuple[Holder, ...]
    blocks: tuple[Held[IPAMBlock], ...]
    claims: tuple[Held[BlockAffinity], ...]
    obstacles: tuple[str, ...]

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return not (self.endpoints or self.holders or self.blocks or self.claims)


def departure(uses: Uses, node: str) -> Departure:
    """What is `node`'s in one state of the store."""
    seen = uses.seen
    holders = tuple(
        holder for _, holder in sorted(seen.holders.items()) if node in (holder.node, holder.owner_of_tunnel)
    )
    return Departure(
        node=node,
        endpoints=tuple(
            held for _, held in sorted(seen.of(WorkloadEndpoint).items()) if held.resource.spec.node == node
        ),
        holders=holders,
        blocks=tuple(held for _, held in sorted(seen.of(IPAMBlock).items()) if held.resource.spec.node == node),
        claims=tuple(held for _, held in sorted(seen.of(BlockAffinity).items()) if held.resource.spec.owner == node),
        obstacles=tuple(_obstacles(uses, node, holders)),
    )


def next_step(going: Departure, seen: Holdings, now: datetime) -> Step:
    """What goes next; `going`, of what is `seen`, has no obstacles and is not over."""
    if going.holders:
        some = going.holders[:AT_ONCE]
        theirs: dict[Key, Held[WorkloadEndpoint]] = {}
        for holder in some:
            theirs.update({held.resource.key: held for held in seen.users(holder)})
        return Step(changes=tuple(freeing(some, theirs.values(), now, WHY)))
    if going.endpoints:
        return Step(changes=tuple(_removal(each) for each in going.endpoints[:AT_ONCE]))
    blocks = going.blocks[:AT_ONCE]
    ended = {block.resource.spec.network for block in blocks}
    claims = tuple(claim for claim in going.claims if claim.resource.spec.network in ended)
    left = () if blocks else going.claims[:AT_ONCE]
    return Step(changes=(*(_end(seen, each, now) for each in blocks), *(_removal(each) for each in (*claims, *left))))


def _end(seen: Holdings, block: Held[IPAMBlock], now: datetime) -> Change:
    if block.resource.spec.allocations or rests(seen, block.resource, now):
        return Write(given_to(block.resource, ""), block.revision)
    return _removal(block)


def _removal(held: Held[R]) -> Remove:
    return Remove(held.resource.key, held.revision)


def _obstacles(uses: Uses, node: str, holders: tuple[Holder, ...]) -> Iterator[str]:
    seen = uses.seen
    for entry in (*seen.unread_of(IPAMBlock), *seen.unread_of(BlockAffinity)):
        yield f"{entry.key} cannot be read, and may be {node}'s; mend or delete that first"
    for holder in holders:
        users = {str(held.resource.key): held.resource.spec.node for held in seen.users(holder)}
        users |= {str(use): use.node for address in holder.addresses for use in uses.uses.get(address, ())}
        for user, there in sorted(users.items()):
            if there != node:
                yield f"{user} of node {there} uses what {holder.text} holds; `muslin ipam check` says more"
        if seen.doubtful(holder):
            yield f"an object that cannot be read may use what {holder.text} holds; `muslin ipam check` names it"

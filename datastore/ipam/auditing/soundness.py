"""Whether blocks, claims and handles agree with one another, whoever uses their addresses. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from ipaddress import ip_address

from msgspec.structs import replace

from core.addr import order, overlap
from core.resources import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, Metadata
from core.resources.ipam import AffinityState, HandleSpec
from datastore.api import ABSENT, At
from datastore.ipam.auditing.findings import Fault, Finding
from datastore.ipam.block import block_name, changed, stamp
from datastore.ipam.books import affinity_key, handle_key
from datastore.ipam.giving.claim import affinity
from datastore.ipam.listing.holders import Held
from datastore.ipam.listing.uses import Allocation, Uses
from datastore.ipam.model import Change, Remove, Step, Write


def of_handles(uses: Uses, now: datetime) -> Iterator[Finding]:
    """Handles without addresses, addresses without handles, and the two that do not name each other."""
    hidden = {entry.key for entry in uses.seen.unread_of(IPAMHandle)}
    for handle in uses.seen.of(IPAMHandle).values():
        yield from _handle(uses, handle)
    objects = {held.resource.spec.handle_id: held for held in uses.seen.of(IPAMHandle).values()}
    for given in (each for all_of in uses.allocations.values() for each in all_of):
        there = objects.get(given.handle)
        if there is None and handle_key(given.handle) not in hidden:
            yield _missing(uses, given, now)
        elif there is not None and str(given.address) not in there.resource.spec.addresses:
            yield _unnamed(given, there)


def _handle(uses: Uses, held: Held[IPAMHandle]) -> Iterator[Finding]:
    """A handle that says it holds what no block gives it."""
    spec = held.resource.spec
    lost = [
        text
        for text in spec.addresses
        if not any(given.handle == spec.handle_id for given in uses.allocations.get(ip_address(text), ()))
        and not uses.dark(ip_address(text))
    ]
    if spec.addresses and not lost:
        return
    used = [text for text in lost if uses.uses.get(ip_address(text))]
    left = {text: cidr for text, cidr in spec.addresses.items() if text not in lost}
    change: Change = Remove(held.resource.key, held.revision)
    if left:
        change = Write(replace(held.resource, spec=replace(spec, addresses=left)), held.revision)
    why = f"no block gives it {', '.join(lost)}" if lost else "it names no address"
    yield Finding(
        fault=Fault.HANDLE if left else Fault.EMPTY_HANDLE,
        what=str(held.resource.key),
        who=spec.handle_id,
        why=why,
        remedy=f"{used[0]} is used: restart its user, so that it is given an address"
        if used
        else ("what it does not hold is taken out of it" if left else "it is removed"),
        step=None if used else Step(changes=(change,)),
    )


def _missing(uses: Uses, given: Allocation, now: datetime) -> Finding:
    """An allocation whose handle has no object: it is made from what is known, so that its age begins to count."""
    holder = uses.holder(given)
    users = [held.resource for held in uses.seen.users(holder)]
    balanced = next((use.key for use in uses.uses.get(given.address, ()) if use.service == given.handle), None)
    user = users[0] if len(users) == 1 else None
    blocks = {str(address): block for address, block in holder.addresses.items() if block is not None}
    made = IPAMHandle(
        api_version=IPAMHandle.KIND.api_version,
        kind=IPAMHandle.KIND.name,
        metadata=Metadata(name=handle_key(given.handle).name),
        spec=HandleSpec(
            handle_id=given.handle,
            addresses={text: block.resource.spec.cidr for text, block in blocks.items()},
            node=holder.owner_of_tunnel or holder.node or given.node,
            container=holder.container,
            namespace=user.metadata.namespace if user else balanced.namespace if balanced else "",
            pod=user.spec.pod if user else "",
            interface=user.spec.interface_name if user else "",
            service=balanced.name if balanced else "",
            since=stamp(now),
        ),
    )
    guards = {block.resource.key: At(block.resource.key, block.revision) for block in blocks.values()}
    return Finding(
        fault=Fault.NO_HANDLE,
        what=str(given.address),
        who=given.handle,
        why=f"{given.block.resource.key} gives it to a handle that is not there: nothing would give it back by that",
        remedy="the handle is made, from the block and its user",
        step=Step(changes=(Write(made, ABSENT),), guards=tuple(guards.values())),
    )


def _unnamed(given: Allocation, held: Held[IPAMHandle]) -> Finding:
    """An allocation whose handle does not name it."""
    block, handle = given.block, held.resource
    addresses = {**handle.spec.addresses, str(given.address): block.resource.spec.cidr}
    return Finding(
        fault=Fault.HANDLE,
        what=str(given.address),
        who=given.handle,
        why=f"{block.resource.key} gives it to {handle.key}, which does not name it",
        remedy="the handle names it",
        step=Step(
            changes=(Write(replace(handle, spec=replace(handle.spec, addresses=addresses)), held.revision),),
            guards=(At(block.resource.key, block.revision),),
        ),
    )


def of_blocks(uses: Uses) -> Iterator[Finding]:
    """Blocks that contradict themselves, one another, or their pool."""
    for held in uses.blocks:
        yield from _itself(held, readable=held.resource.key not in uses.seen.unread)
        yield from _in_its_pool(uses, held)
    yield from _overlapping(uses)


def _itself(held: Held[IPAMBlock], *, readable: bool) -> Iterator[Finding]:
    block, spec = held.resource, held.resource.spec
    lent = [text for text in spec.borrowers if text not in spec.allocations]
    both = [text for text in spec.freed if text in spec.allocations]
    whole = changed(
        block,
        borrowers={text: node for text, node in spec.borrowers.items() if text not in lent},
        freed={text: when for text, when in spec.freed.items() if text not in both},
    )
    faults = [
        *(f"{text} is borrowed by {spec.borrowers[text]} and nobody holds it" for text in lent),
        *(f"{text} is held and called free at once" for text in both),
    ]
    if faults and readable:
        yield Finding(
            fault=Fault.BLOCK,
            what=str(block.key),
            who=spec.affinity,
            why="; ".join(faults),
            remedy="what is held counts, the rest is taken out of it",
            step=Step(changes=(Write(whole, held.revision),)),
        )
    if block.metadata.name != block_name(spec.network):
        yield Finding(
            fault=Fault.BLOCK,
            what=str(block.key),
            who=spec.affinity,
            why=f"a block of {spec.network} is named {block_name(spec.network)}: another could be made beside it",
            remedy="move its pods, and delete it",
        )


def _in_its_pool(uses: Uses, held: Held[IPAMBlock]) -> Iterator[Finding]:
    """A block of no pool, or of another size than its pool's blocks."""
    network = held.resource.spec.network
    if uses.seen.unread_of(IPPool):
        return
    around = uses.seen.pool_of(network)
    if around is None:
        why = "it lies in no IPPool: its addresses are neither routed nor translated as pods'"
    elif around.resource.spec.block_length != network.prefixlen:
        why = f"blocks of {around.resource.key} are /{around.resource.spec.block_length}"
    else:
        return
    empty = not held.resource.spec.allocations and held.resource.key not in uses.seen.unread
    yield Finding(
        fault=Fault.BLOCK,
        what=str(held.resource.key),
        who=held.resource.spec.affinity,
        why=why,
        remedy="it is empty, and is removed" if empty else "move its pods; it goes when it is empty",
        step=_without_block(uses, held) if empty else None,
    )


def _without_block(uses: Uses, held: Held[IPAMBlock]) -> Step:
    network = held.resource.spec.network
    claims = (each for each in uses.seen.of(BlockAffinity).values() if each.resource.spec.network == network)
    gone = (Remove(each.resource.key, each.revision) for each in claims)
    return Step(changes=(Remove(held.resource.key, held.revision), *gone))


def _overlapping(uses: Uses) -> Iterator[Finding]:
    """Of blocks sorted by address, one that overlaps others overlaps the widest before them."""
    widest: Held[IPAMBlock] | None = None
    for held in sorted(uses.blocks, key=lambda each: order(each.resource.spec.network)):
        if widest is not None and overlap(widest.resource.spec.network, held.resource.spec.network):
            yield Finding(
                fault=Fault.BLOCK,
                what=str(held.resource.key),
                who=held.resource.spec.affinity,
                why=f"it overlaps {widest.resource.key}: an address of both can be given twice",
                remedy="move the pods of one of them, and delete that",
            )
        else:
            widest = held


def of_affinities(uses: Uses) -> Iterator[Finding]:
    """Claims without their block or their node, blocks without their claim, claims half made."""
    blocks = {held.resource.spec.network: held for held in uses.blocks}
    for held in uses.seen.of(BlockAffinity).values():
        spec = held.resource.spec
        if uses.dark(spec.network.network_address):
            continue
        found = _claim(uses, held, blocks.get(spec.network))
        if found is not None:
            yield found
    hidden = {entry.key for entry in uses.seen.unread_of(BlockAffinity)}
    claimed = {(each.resource.spec.owner, each.resource.spec.network) for each in uses.seen.of(BlockAffinity).values()}
    for block in uses.blocks:
        owner, network = block.resource.spec.owner, block.resource.spec.network
        if not owner or (owner, network) in claimed or affinity_key(owner, network) in hidden:
            continue
        known = owner in uses.seen.nodes or not block.resource.spec.node
        yield _unclaimed(block) if known else _deserted(uses, block)


def _claim(uses: Uses, held: Held[BlockAffinity], block: Held[IPAMBlock] | None) -> Finding | None:
    spec = held.resource.spec
    away = Remove(held.resource.key, held.revision)
    its = block is not None and block.resource.spec.owner == spec.owner
    if spec.node not in uses.seen.nodes and spec.type == "host":
        return _gone(uses, held, block if its else None)
    if block is not None and not its:
        owner = block.resource.spec.owner or "nobody"
        why, remedy = f"{block.resource.key} is {owner}'s", "the claim is removed"
    elif spec.state is AffinityState.CONFIRMED and block is None:
        why, remedy = "the block is not there", "the claim is removed"
    elif spec.state is not AffinityState.CONFIRMED:
        return _half_made(held, block)
    else:
        return None
    # A node may be about to make the block: who begins anew writes the claim anew, and then this step is refused.
    return Finding(
        fault=Fault.NO_BLOCK,
        what=str(held.resource.key),
        who=spec.node,
        why=why,
        remedy=remedy,
        step=Step(changes=(away,)),
    )


def _gone(uses: Uses, held: Held[BlockAffinity], block: Held[IPAMBlock] | None) -> Finding:
    """A claim of a node that is not there (any more)."""
    spec, changes = held.resource.spec, (Remove(held.resource.key, held.revision),)
    step: Step | None = Step(changes=changes)
    remedy = "the claim is removed"
    if block is not None and (block.resource.spec.allocations or block.resource.key in uses.seen.unread):
        step, remedy = None, "its pods' endpoints may be in use: delete them, or apply the Node again"
    elif block is not None:
        step, remedy = (
            Step(changes=(*changes, Remove(block.resource.key, block.revision))),
            "claim and block are removed",
        )
    return Finding(
        fault=Fault.NODE_GONE,
        what=str(held.resource.key),
        who=spec.node,
        why=f"there is no Node {spec.node}",
        remedy=remedy,
        step=step,
    )


def _half_made(held: Held[BlockAffinity], block: Held[IPAMBlock] | None) -> Finding:
    """A claim that is not confirmed: its block is its node's (confirm it), or not there (its node goes on with it)."""
    spec = held.resource.spec
    found = Finding(
        fault=Fault.PENDING,
        what=str(held.resource.key),
        who=spec.node,
        why=f"it is {spec.state}, and there is no such block",
        remedy=f"{spec.node} goes on with it when it needs a block; delete it if the node never comes back",
    )
    if block is None:
        return found
    whole = replace(held.resource, spec=replace(spec, state=AffinityState.CONFIRMED))
    step = Step(changes=(Write(whole, held.revision),), guards=(At(block.resource.key, block.revision),))
    return Finding(
        fault=Fault.PENDING,
        what=found.what,
        who=found.who,
        why=f"it is {spec.state}, and the block is its node's",
        remedy="it is confirmed",
        step=step,
    )


def _unclaimed(block: Held[IPAMBlock]) -> Finding:
    spec = block.resource.spec
    made = affinity(spec.owner, spec.network, AffinityState.CONFIRMED)
    return Finding(
        fault=Fault.NO_AFFINITY,
        what=str(block.resource.key),
        who=spec.owner,
        why=f"it is {spec.owner}'s, which has no BlockAffinity to it",
        remedy="the BlockAffinity is made",
        step=Step(changes=(Write(made, ABSENT),), guards=(At(block.resource.key, block.revision),)),
    )


def _deserted(uses: Uses, block: Held[IPAMBlock]) -> Finding:
    """A block of a node that is not there (any more), without a claim."""
    empty = not block.resource.spec.allocations and block.resource.key not in uses.seen.unread
    return Finding(
        fault=Fault.NODE_GONE,
        what=str(block.resource.key),
        who=block.resource.spec.node,
        why=f"there is no Node {block.resource.spec.node}",
        remedy="it is empty, and is removed" if empty else "delete its pods' endpoints, or apply the Node again",
        step=Step(changes=(Remove(block.resource.key, block.revision),)) if empty else None,
    )

"""The end of a handle, of one address, of a block, of a claim. What is given back is remembered in an IPAMRecord.

A handle's end is one transaction with its blocks and compares with its revision: an address that was given anew since
it was judged to be lost stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from core.addr import Address, Network
from core.names import Key
from core.resources import IPAMBlock, IPAMHandle
from core.resources.ipam import HandleSpec
from datastore.api import ABSENT, At, Guard
from datastore.ipam import block as blocks
from datastore.ipam.books import Books, block_key, handle_key
from datastore.ipam.giving.assign import held
from datastore.ipam.giving.past import record
from datastore.ipam.model import Change, Grant, Remove, Step, Write


@dataclass(slots=True)
class _Freed:
    """What is given back in one step."""

    blocks: dict[Key, Write] = field(default_factory=dict)
    records: list[Write] = field(default_factory=list)
    addresses: list[Address] = field(default_factory=list)


def release(books: Books, handle: str, why: str, now: datetime, node: str = "") -> Step:
    """Free all that `handle` holds, if that is on `node` ("": anywhere); the grant is what is freed. Nothing known of
    it: no changes.

    An address whose block cannot be read stays, and the handle with it, until the block can be read.
    """
    seen = books.handle(handle)
    if seen is None or seen.resource is None or (node and seen.resource.spec.node not in ("", node)):
        return Step(grant=Grant(handle=handle, addresses=()))
    freed = _Freed()
    kept: dict[str, str] = {}
    found = held(books, seen)
    for address, there in found.places.items():
        if there.resource is None:
            kept[str(address)] = seen.resource.spec.addresses[str(address)]
        else:
            _give_back(books, there.key, address, seen.resource.spec, why, now, freed)
    if kept and not freed.addresses:
        return Step(grant=Grant(handle=handle, addresses=()))
    return _step(handle, freed, _rest_of(seen.resource, kept, seen.revision), found.guards)


def release_address(
    books: Books, address: Address, why: str, now: datetime, handle_revision: int | None = None
) -> Step:
    """Free one address, whoever holds it, also when its handle is missing. No changes when it is free already.

    `handle_revision` is that of its handle when it was judged (ABSENT: it was missing); when the handle has been
    written since, there are no changes either.
    """
    there = books.block_around(address)
    text = str(address)
    handle = "" if there is None or there.resource is None else there.resource.spec.allocations.get(text, "")
    nothing = Step(grant=Grant(handle=handle, addresses=()))
    if there is None or not handle:
        return nothing
    seen = books.handle(handle)
    revision = ABSENT if seen is None else seen.revision
    if handle_revision is not None and handle_revision != revision:
        return nothing
    if seen is not None and seen.resource is None:
        return nothing  # whom it is for is not known; nothing that may be in use is freed
    freed = _Freed()
    spec = seen.resource.spec if seen is not None and seen.resource is not None else None
    _give_back(books, there.key, address, spec or HandleSpec(handle_id=handle, addresses={}), why, now, freed)
    if seen is None or seen.resource is None:
        return _step(handle, freed, Remove(handle_key(handle), ABSENT))  # compares: it is not there
    kept = {each: cidr for each, cidr in seen.resource.spec.addresses.items() if each != text}
    return _step(handle, freed, _rest_of(seen.resource, kept, seen.revision))


def release_block(books: Books, network: Network, now: datetime) -> Step:
    """Remove a block and its owner's claim. No changes when it is in use, resting, or cannot be read."""
    seen = books.find(IPAMBlock, block_key(network))
    if seen is None or seen.resource is None or seen.resource.spec.allocations:
        return Step()
    guards: tuple[Guard, ...] = books.settings_guards()[:1]  # how long addresses rest
    if blocks.resting(seen.resource, blocks.rested_since(now, books.settings().ip_cooldown_seconds)):
        return Step()
    changes: list[Change] = [Remove(seen.key, seen.revision)]
    claim = books.affinity(seen.resource.spec.owner, network) if seen.resource.spec.owner else None
    if claim is not None:
        changes.append(Remove(claim.key, claim.revision))
    return Step(changes=tuple(changes), guards=guards)


def release_affinity(books: Books, node: str, network: Network, now: datetime) -> Step:
    """End a node's claim to a block. A block that is in use or rests becomes nobody's; an empty one goes."""
    claim = books.affinity(node, network)
    seen = books.find(IPAMBlock, block_key(network))
    mine = seen is not None and seen.resource is not None and seen.resource.spec.owner == node
    if not mine:
        return (
            Step()
            if claim is None or (seen is not None and seen.resource is None)
            else Step(changes=(Remove(claim.key, claim.revision),))
        )
    gone = release_block(books, network, now)
    if gone.changes:
        return gone
    assert seen is not None
    assert seen.resource is not None
    changes: list[Change] = [Write(blocks.given_to(seen.resource, ""), seen.revision)]
    if claim is not None:
        changes.append(Remove(claim.key, claim.revision))
    return Step(changes=tuple(changes))


def _give_back(
    books: Books, key: Key, address: Address, spec: HandleSpec, why: str, now: datetime, freed: _Freed
) -> None:
    """Add one address, which is held, to what is freed."""
    before = freed.blocks.get(key)
    block = before.resource if before is not None else books.find(IPAMBlock, key).resource  # type: ignore[union-attr]
    assert isinstance(block, IPAMBlock)
    freed.blocks[key] = Write(blocks.give_back(block, address, now), books.at(key))
    freed.addresses.append(address)
    freed.records.append(Write(record(block, address, spec, why, now), ABSENT))


def _rest_of(handle: IPAMHandle, kept: dict[str, str], revision: int) -> Change:
    """The handle without what is freed; away when nothing is left."""
    if not kept:
        return Remove(handle.key, revision)
    return Write(msgspec.structs.replace(handle, spec=msgspec.structs.replace(handle.spec, addresses=kept)), revision)


def _step(handle: str, freed: _Freed, rest: Change, guards: tuple[Guard, ...] = ()) -> Step:
    changes = (*freed.blocks.values(), rest, *freed.records)
    addresses = tuple(sorted(freed.addresses, key=lambda each: (each.version, int(each))))
    guards = tuple(each for each in guards if not (isinstance(each, At) and each.key in freed.blocks))
    return Step(changes=changes, guards=guards, grant=Grant(handle=handle, addresses=addresses))

"""A pool's end: at once when nobody holds an address of it, else with the last one that is given back.

    delete ── is an address held? ── no ───────────────────────────────> one transaction: the pool, its blocks,
                     └── yes ──> Terminating (deletionTimestamp, and ─────^   their affinities
                                 a finalizer): gives no address;   when the last is free
                                 pods that have one keep it

A pool that terminates is written anew, so whoever was about to give an address of it loses his guard on the pool. From
then on no block of it can come to be: its end needs no other guard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from core.addr import contains, overlap
from core.resources import BlockAffinity, IPAMBlock, IPPool
from datastore.api import Unchanged
from datastore.ipam.listing.holders import Held, Holdings
from datastore.ipam.model import Change, Remove, Step, Write

MOST_CHANGES: Final = 100
"""What one transaction removes; etcd takes 128 operations, as it is delivered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What deleting a pool comes to now.

    `held` maps the addresses that keep it to their handles; `waits` says what else it waits for. Without either, `step`
    removes the pool and what is left of it; with one, it marks the pool (or does nothing, if it is marked).
    """

    pool: IPPool
    held: Mapping[str, str]
    waits: str
    step: Step

    @property
    def over(self) -> bool:
        """Whether `step` removes the pool."""
        return not self.held and not self.waits


def ending(pool: Held[IPPool], seen: Holdings, now: str) -> Ending:
    """How a pool ends; `now` is RFC 3339."""
    terminates = pool.resource.terminating
    held = addresses_held(pool.resource, seen)
    remains = tuple(_remains(pool, seen))
    waits = _waits(seen, len(remains))
    if held or waits:
        marked = () if terminates else (Write(terminating(pool.resource, now), pool.revision),)
        return Ending(pool=pool.resource, held=held, waits=waits, step=Step(changes=marked))
    guards = () if terminates else (Unchanged(IPAMBlock.KIND, seen.revision),)
    return Ending(pool=pool.resource, held=held, waits="", step=Step(changes=remains, guards=guards))


def _waits(seen: Holdings, changes: int) -> str:
    unread = min((str(entry.key) for entry in seen.unread_of(IPAMBlock)), default="")
    if unread:
        return f"{unread} cannot be read and may be of it; mend or delete that"
    return f"its nodes give back their {changes - 1} blocks and claims first" if changes > MOST_CHANGES else ""


def addresses_held(pool: IPPool, seen: Holdings) -> dict[str, str]:
    """The addresses of a pool that somebody holds, each with its handle."""
    blocks = (held.resource.spec for held in seen.of(IPAMBlock).values())
    inside = (spec for spec in blocks if overlap(pool.spec.network, spec.network))
    return {address: handle for spec in inside for address, handle in spec.allocations.items()}


def terminating(pool: IPPool, now: str) -> IPPool:
    """`pool`, marked as deleted and kept by its finalizer."""
    finalizers = [*(each for each in pool.metadata.finalizers if each != IPPool.FINALIZER), IPPool.FINALIZER]
    return replace(pool, metadata=replace(pool.metadata, deletion_timestamp=now, finalizers=finalizers))


def _remains(pool: Held[IPPool], seen: Holdings) -> Iterator[Change]:
    """The pool's removal and that of its empty blocks and all claims to a part of it."""
    network = pool.resource.spec.network
    yield Remove(pool.resource.key, pool.revision)
    for key, block in seen.of(IPAMBlock).items():
        if contains(network, block.resource.spec.network):
            yield Remove(key, block.revision)
    for key, claim in seen.of(BlockAffinity).items():
        if contains(network, claim.resource.spec.network):
            yield Remove(key, claim.revision)

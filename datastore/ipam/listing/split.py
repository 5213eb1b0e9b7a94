"""One pool replaced by n equal ones, in one transaction: blocks, addresses and pods are not touched.

    pods 10.244.0.0/16  ── split 4 ──>  split-pods-0 10.244.0.0/18   split-pods-1 10.244.64.0/18
                                        split-pods-2 10.244.128.0/18  split-pods-3 10.244.192.0/18

Calico wants the datastore locked for this, as it makes the children one by one. Here the transaction compares with the
pool's revision, and whoever gives an address of the pool guards its revision too: he comes before the split, or is
refused and decides again among the children. So nothing has to be locked, and nobody sees the pool half split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from uuid import uuid4

from msgspec.structs import replace

from core.addr import overlap
from core.errors import Invalid, Problem
from core.names import Key
from core.resources import IPAMBlock, IPPool, Metadata
from datastore.api import ABSENT
from datastore.ipam.listing.holders import Held, Holdings
from datastore.ipam.model import Remove, Step, Write

MOST_PARTS: Final = 64
"""Pools that one becomes; etcd takes 128 operations in a transaction, as it is delivered."""

MOST_NAME: Final = 245
"""Characters of the pool's name that its children's names keep, as in Calico."""


def split(held: Held[IPPool], parts: int, seen: Holdings, now: str) -> Step:
    """The transaction that replaces a pool by `parts` children. Raises `Invalid` with every reason against it.

    `now` (RFC 3339) is when the children are made. They are as the pool was but for cidr and name; as in Calico they
    are named `split-POOL-0` and so on, by address. Unlike in Calico a disabled pool's children are disabled.
    """
    problems = list(_against(held.resource, parts, seen))
    if problems:
        what = f"{held.resource.KIND.name}/{held.resource.metadata.name}"
        raise Invalid([Problem(what=what, why=why) for why in problems])
    made = tuple(Write(child, ABSENT) for child in children(held.resource, parts, now))
    return Step(changes=(Remove(held.resource.key, held.revision), *made))


def children(pool: IPPool, parts: int, now: str) -> Iterator[IPPool]:
    """The pools that `pool` becomes, by address."""
    networks = pool.spec.network.subnets(prefixlen_diff=parts.bit_length() - 1)
    for number, network in enumerate(networks):
        metadata = Metadata(
            name=f"split-{pool.metadata.name[:MOST_NAME]}-{number}",
            labels=pool.metadata.labels,
            annotations=pool.metadata.annotations,
            finalizers=pool.metadata.finalizers,
            owner_references=pool.metadata.owner_references,
            uid=str(uuid4()),
            creation_timestamp=now,
        )
        yield replace(pool, metadata=metadata, spec=replace(pool.spec, cidr=str(network)))


def _against(pool: IPPool, parts: int, seen: Holdings) -> Iterator[str]:
    if pool.terminating:
        yield f"it is being deleted since {pool.metadata.deletion_timestamp}"
    if parts < 2 or parts.bit_count() != 1:
        yield f"it cannot become {parts} equal pools; say a power of two: 2, 4, 8, ..."
        return
    if parts > MOST_PARTS:
        yield f"it cannot become {parts} pools at once, but {MOST_PARTS}; split those again"
        return
    length = pool.spec.network.prefixlen + parts.bit_length() - 1
    if length > pool.spec.block_length:
        yield f"a /{length} of it would be smaller than its blocks (/{pool.spec.block_length}); split it in fewer"
        return
    yield from _straddling(pool, length, seen)
    names = (child.metadata.name for child in children(pool, parts, ""))
    for name in names:
        if Key(IPPool.KIND, "", name) in {*seen.of(IPPool), *seen.unread}:
            yield f"there is an IPPool {name} already; delete or rename that first"


def _straddling(pool: IPPool, length: int, seen: Holdings) -> Iterator[str]:
    for key, block in seen.of(IPAMBlock).items():
        network = block.resource.spec.network
        if overlap(pool.spec.network, network) and network.prefixlen < length:
            yield f"{key} ({network}) is larger than a /{length} of it: it would lie in several pools"
    for entry in seen.unread_of(IPAMBlock):
        yield f"{entry.key} cannot be read and may be larger than the pools it becomes; mend or delete that first"

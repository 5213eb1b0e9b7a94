"""Why there is no address, in a sentence for the person who wants one: which pools, how full, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from core.addr import Address, Family
from core.resources import IPAMBlock, IPPool
from core.resources.ipam import IPAMConfigurationSpec
from datastore.ipam import block as blocks
from datastore.ipam.books import Books
from datastore.ipam.giving.pools import Serving, serving
from datastore.ipam.model import Exhausted, Request


@dataclass(slots=True)
class _Count:
    """The addresses of a pool, by what has become of them; `free` are in blocks, of the node or of others."""

    held: int = 0
    resting: int = 0
    reserved: int = 0
    free: int = 0
    unusable: int = 0
    first_rested: str = ""


def why(
    books: Books, request: Request, family: Family, fit: Serving, settings: IPAMConfigurationSpec, rested: str
) -> str:
    """Why `request` gets nothing of `family`."""
    if not fit.pools:
        return f"{_who(request, family)}: {_none(books, family, fit)}"
    counts = {pool.metadata.name: _count(books, pool, rested) for pool in fit.pools}
    fill = "; ".join(_filled(pool, counts[pool.metadata.name]) for pool in fit.pools)
    remedy = _remedy(books, request, family, list(counts.values()), settings)
    return f"{_who(request, family)}: {fill}; {remedy}"


def nothing_serves(books: Books, request: Request) -> str:
    """Why a request that leaves the family open gets nothing of either."""
    refused = {family: serving(books, request, family) for family in Family}
    reasons = "; ".join(_none(books, family, fit) for family, fit in refused.items())
    return f"no address for {request}: {reasons}"


def no_pool_for(request: Request, address: Address, fit: Serving) -> str:
    """Why an address that was asked for is in no pool that may give it."""
    if fit.refused:
        reasons = ", ".join(f"pool {name} {reason}" for name, reason in fit.refused.items())
        return f"{address} for {_name(request)} cannot be given: {reasons}"
    asked = request.pools.get(Family(address.version))
    among = f"none of {', '.join(asked)}" if asked else "no pool"
    return f"{address} for {_name(request)} lies in {among}; ask for one that a pool has, or add a pool"


def refuse_taken(
    request: Request, block: IPAMBlock, address: Address, rested: str, settings: IPAMConfigurationSpec
) -> None:
    """Raise `Exhausted` when an address that was asked for is held, or rests."""
    text = str(address)
    holder = block.spec.allocations.get(text)
    if holder is not None:
        raise Exhausted(f"{text} for {_name(request)} is held by {holder}; release it, or ask for another")
    since = block.spec.freed.get(text, "")
    if rested and since > rested:
        until = _until(since, settings)
        raise Exhausted(f"{text} for {_name(request)} was freed a moment ago and rests until {until}; try again then")


def no_claim(node: str, count: int, settings: IPAMConfigurationSpec, *, begun: bool) -> str:
    """Why a node may not have another block; "" when it may. A claim that was begun is counted already."""
    if not settings.auto_allocate_blocks:
        return f"autoAllocateBlocks keeps node {node} from making one"
    if count - begun >= settings.most_blocks:
        return f"node {node} has {count} blocks of the {settings.most_blocks} that maxBlocksPerHost allows"
    return ""


def _name(request: Request) -> str:
    return str(request) if request.owner.virtual else request.handle


def _who(request: Request, family: Family) -> str:
    return f"no IPv{family} address for {request}"


def _none(books: Books, family: Family, fit: Serving) -> str:
    if not fit.refused:
        return f"there is no IPv{family} pool"
    reasons = ", ".join(f"{name} {reason}" for name, reason in sorted(fit.refused.items()))
    return f"none of the IPv{family} pools may be used: {reasons}"


def _count(books: Books, pool: IPPool, rested: str) -> _Count:
    count = _Count()
    for seen in books.blocks_within(blocks.network(pool)):
        if seen.resource is None or not books.usable(blocks.network(seen.resource)):
            count.unusable += 1
            continue
        spec, network = seen.resource.spec, blocks.network(seen.resource)
        reserved = books.reserved_in(network)
        count.held += len(spec.allocations)
        kept_back = sum(text not in spec.allocations for text in reserved)
        count.reserved += kept_back
        resting = [since for text, since in spec.freed.items() if rested and since > rested and text not in reserved]
        count.resting += len(resting)
        count.first_rested = min([*resting, *filter(None, [count.first_rested])], default="")
        count.free += network.num_addresses - len(spec.allocations) - kept_back - len(resting)
    return count


def _filled(pool: IPPool, count: _Count) -> str:
    parts = [f"{count.held} of {blocks.network(pool).num_addresses} held"]
    parts += [f"{number} {what}" for number, what in _rest(count) if number]
    return f"pool {pool.metadata.name} ({pool.spec.cidr}) has {', '.join(parts)}"


def _rest(count: _Count) -> Iterator[tuple[int, str]]:
    yield count.resting, "freed and resting"
    yield count.reserved, "reserved"
    yield count.free, "free in blocks of other nodes"
    yield count.unusable, "blocks that cannot be used (see ipam check)"


def _remedy(
    books: Books, request: Request, family: Family, counts: list[_Count], settings: IPAMConfigurationSpec
) -> str:
    node = request.owner.node
    if books.unplaced():
        return f"no block is made while IPAMBlock {books.unplaced()[0]} cannot be read; repair it"
    number = books.count_blocks(node, family)
    resting = [count.first_rested for count in counts if count.first_rested]
    limit = no_claim(node, number, settings, begun=False)
    if settings.strict_affinity and limit:
        return f"strictAffinity is set and {limit}; raise the limit or free addresses of this node"
    if resting:
        return f"the next has rested at {_until(min(resting), settings)}"
    if settings.strict_affinity and any(count.free for count in counts) and not request.owner.virtual:
        return "strictAffinity keeps it from what is free on other nodes; add a pool or free addresses"
    if any(count.reserved for count in counts):
        return "only reserved addresses are left; add a pool, or free addresses"
    return "add a pool or free addresses"


def _until(since: str, settings: IPAMConfigurationSpec) -> str:
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        return "a time that cannot be read"
    return blocks.stamp(moment + timedelta(seconds=settings.ip_cooldown_seconds))

"""One block of addresses: who holds what, what is free, which free address is next. Pure; a change is a new block.

    10.244.7.0/29      allocations  .1 .4 .5      held
                       freed        .0 (12:00:05)  .2 (12:00:09)      held once; the longest free is given first
                       neither      .3 .6 .7      never held: these go before any that was, the lowest first

An address in `freed` rests while it is younger than the cool-down. A block keeps the memory of what was freed for as
long as it lives, so it may not be deleted before its youngest has rested. Calico's FIFO is a list; here it is the
times themselves, in microseconds, and what is freed at the same time, or by a clock that is a little behind, is put
just after what went before: so the order is that of the releases also within one second.

A block of 4,096 addresses is the largest there is (IPv4 /20, IPv6 /116), and what is done for each allocation is done
in C: copying a dict, and looking for the first text of a list that is not a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Network, ip_address, ip_network
from itertools import filterfalse
from typing import Final

import msgspec

from core.addr import Address, Network, contains
from core.resources import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, Metadata
from core.resources.ipam import VIRTUAL, BlockSpec

NOTHING: Final[AbstractSet[str]] = frozenset()

_TICK: Final = timedelta(microseconds=1)
_SKEW: Final = timedelta(seconds=1)
_AS_NAME: Final = str.maketrans(".:/", "---")


def stamp(moment: datetime) -> str:
    """A time as IPAM keeps it: RFC 3339, UTC, in microseconds, always as long, so that texts compare as times do."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def block_name(cidr: Network) -> str:
    """The name of the block's object: its CIDR with `.`, `:` and `/` as `-`."""
    return str(cidr).translate(_AS_NAME)


def network_of(name: str) -> Network | None:
    """The CIDR that `block_name` made the name of; None when it is no such name."""
    head, _, length = name.rpartition("-")
    for separator in ".:":
        try:
            found = ip_network(f"{head.replace('-', separator)}/{length}")
        except ValueError:
            continue
        if block_name(found) == name:
            return found
    return None


@lru_cache(maxsize=1 << 14)
def _parsed(cidr: str) -> Network:
    return ip_network(cidr)


def network(of: IPAMBlock | BlockAffinity | IPPool) -> Network:
    """A CIDR: `spec.network`, remembered, as it is asked for many times an allocation."""
    return _parsed(of.spec.cidr)


def affinity_of(node: str) -> str:
    """A block's `affinity` when it is `node`'s, or an owner's that is no node; "" for nobody's."""
    return node if not node or node.startswith(VIRTUAL) else f"host:{node}"


def empty(cidr: Network, node: str) -> IPAMBlock:
    """A block of `node` that nobody holds anything of."""
    return IPAMBlock(
        api_version=IPAMBlock.KIND.api_version,
        kind=IPAMBlock.KIND.name,
        metadata=Metadata(name=block_name(cidr)),
        spec=BlockSpec(cidr=str(cidr), affinity=affinity_of(node)),
    )


def full(block: IPAMBlock) -> bool:
    """Whether every address is held; what rests or is reserved does not count."""
    return len(block.spec.allocations) >= network(block).num_addresses


def next_free(block: IPAMBlock, rested_since: str = "", reserved: AbstractSet[str] = NOTHING) -> Address | None:
    """The address that is given next; None when there is none.

    `rested_since` (a `stamp`; "" when there is no cool-down): what was freed after it may not be given. `reserved` are
    those (texts) that are never given without being asked for.
    """
    cidr, taken, freed = network(block), block.spec.allocations, block.spec.freed
    if len(taken) + len(freed) < cidr.num_addresses:
        never = filterfalse(freed.__contains__, filterfalse(taken.__contains__, _texts(cidr)))
        fresh = next(filterfalse(reserved.__contains__, never), None)
        if fresh is not None:
            return ip_address(fresh)
    oldest = _longest_free(freed, reserved)
    if oldest is None or (rested_since and freed[oldest] > rested_since):
        return None  # if the oldest has to rest, so have all
    return ip_address(oldest)


def longest_free_since(block: IPAMBlock, reserved: AbstractSet[str] = NOTHING) -> str | None:
    """When the address that is given next of those once held became free; None when there is none."""
    oldest = _longest_free(block.spec.freed, reserved)
    return None if oldest is None else block.spec.freed[oldest]


def rested_since(now: datetime, cooldown_s: int) -> str:
    """What was freed at this time or before it has rested; "" when there is no cool-down, so anything has."""
    return stamp(now - timedelta(seconds=cooldown_s)) if cooldown_s > 0 else ""


def resting(block: IPAMBlock, rested: str) -> bool:
    """Whether any of its addresses may not be given yet; `rested` is from `rested_since`."""
    return bool(rested) and max(block.spec.freed.values(), default="") > rested


def take(block: IPAMBlock, address: Address, handle: str, node: str) -> IPAMBlock:
    """`block` with `address`, which must be free, held by `handle` on `node`."""
    spec = block.spec
    text = str(address)
    assert contains(network(block), address)
    assert text not in spec.allocations
    freed = spec.freed
    if text in freed:
        freed = {**freed}
        del freed[text]
    borrowers = spec.borrowers if node == spec.owner else {**spec.borrowers, text: node}
    return changed(block, allocations={**spec.allocations, text: handle}, borrowers=borrowers, freed=freed)


def give_back(block: IPAMBlock, address: Address, now: datetime) -> IPAMBlock:
    """`block` with `address`, which must be held, free since `now`."""
    spec = block.spec
    text = str(address)
    allocations = {**spec.allocations}
    del allocations[text]
    borrowers = spec.borrowers
    if text in borrowers:
        borrowers = {each: node for each, node in borrowers.items() if each != text}
    freed = {**spec.freed, text: _after(spec.freed, now)}
    return changed(block, allocations=allocations, borrowers=borrowers, freed=freed)


def given_to(block: IPAMBlock, node: str) -> IPAMBlock:
    """`block` with another owner ("": nobody). What is held stays with the nodes that it is used on."""
    spec = block.spec
    there = {**dict.fromkeys(spec.allocations, spec.node), **spec.borrowers}
    borrowers = {text: user for text, user in there.items() if user and user != node}
    return changed(block, affinity=affinity_of(node), borrowers=borrowers)


def changed(block: IPAMBlock, **fields: object) -> IPAMBlock:
    """A copy of `block` with other values of its spec."""
    return msgspec.structs.replace(block, spec=msgspec.structs.replace(block.spec, **fields))


def spelt(block: IPAMBlock) -> IPAMBlock:
    """`block` with each address in the one spelling by which it is looked up: IPv6 has many (`FD00::1`, `fd00:0::1`).

    Raises `ValueError` for what is no address, and for one address under two spellings.
    """
    spec = block.spec
    if isinstance(network(block), IPv4Network):
        return block  # IPv4 has one
    maps = {"allocations": spec.allocations, "borrowers": spec.borrowers, "freed": spec.freed}
    wrong = {name: given for name, given in maps.items() if any(text != _spelling(text) for text in given)}
    if not wrong:
        return block
    right = {name: {_spelling(text): value for text, value in given.items()} for name, given in wrong.items()}
    for name, given in right.items():
        if len(given) < len(maps[name]):
            raise ValueError(f"{block.spec.cidr}: {name} has an address twice")
    return changed(block, **right)


def spelt_handle(handle: IPAMHandle) -> IPAMHandle:
    """As `spelt`."""
    given = handle.spec.addresses
    if all(text == _spelling(text) for text in given):
        return handle
    right = {_spelling(text): cidr for text, cidr in given.items()}
    if len(right) < len(given):
        raise ValueError(f"{handle.spec.handle_id} has an address twice")
    return msgspec.structs.replace(handle, spec=msgspec.structs.replace(handle.spec, addresses=right))


@lru_cache(maxsize=1 << 16)
def _spelling(text: str) -> str:
    return str(ip_address(text))


def texts_within(cidr: Network, ranges: Iterable[Network]) -> frozenset[str]:
    """The addresses of `cidr`, a block's, that lie in any of `ranges`."""
    first, texts = int(cidr.network_address), _texts(cidr)
    found: set[str] = set()
    for each in ranges:
        if contains(each, cidr):
            return frozenset(texts)
        if contains(cidr, each):
            start = int(each.network_address) - first
            found.update(texts[start : start + each.num_addresses])
    return frozenset(found)


def _longest_free(freed: Mapping[str, str], reserved: AbstractSet[str]) -> str | None:
    usable = filterfalse(reserved.__contains__, freed) if reserved else freed
    return min(usable, key=freed.__getitem__, default=None)


def _after(freed: Mapping[str, str], now: datetime) -> str:
    """When something is freed that is freed now: behind all that was freed, but for a clock that is far ahead."""
    last = max(freed.values(), default="")
    if stamp(now) <= last < stamp(now + _SKEW):
        return stamp(datetime.fromisoformat(last) + _TICK)
    return stamp(now)


@lru_cache(maxsize=256)
def _texts(cidr: Network) -> tuple[str, ...]:
    """Every address of a block as text, in order."""
    first, count = int(cidr.network_address), cidr.num_addresses
    if isinstance(cidr, IPv4Network):
        numbers = range(first, first + count)
        return tuple(f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in numbers)
    return tuple(str(each) for each in cidr)

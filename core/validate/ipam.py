"""Rules for what IPAM keeps and is told: blocks, affinities, handles, reservations, settings, records.

A block is read by everybody who routes, so it is refused only for what nobody could read: text that is no address, an
address outside it. What merely does not agree (a borrower of an address that nobody holds) is for the audit
(`datastore.ipam.auditing`) to find: a block that cannot be read would take its pods' routes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Final

from core import values
from core.addr import Network
from core.documents import join
from core.errors import Problem
from core.resources import BlockAffinity, IPAMBlock, IPAMConfiguration, IPAMHandle, IPAMRecord, IPReservation
from core.resources.ipam import HandleSpec
from core.validate.checks import each, name, once, one_of, reads, when_set, within

MOST_COOLDOWN_S: Final = 1200
"""Longest rest of a freed address, as in Calico."""

MOST_BLOCKS: Final = (1 << 31) - 1

PERSISTENCE: Final = ("Enabled", "Disabled")

MOST_HANDLE_CHARACTERS: Final = 512

MOST_ADDRESSES: Final = 4096
"""Of the largest block: IPv4 /20, IPv6 /116."""


@lru_cache(maxsize=1 << 12)
def _network(text: str) -> Network:
    """As `values.network`; a block's is read again each time one of its addresses changes hands."""
    return values.network(text)


@lru_cache(maxsize=256)
def _texts(network: Network) -> frozenset[str]:
    """Every address of a block as text; none for what is too large to be one."""
    return frozenset(map(str, network)) if network.num_addresses <= MOST_ADDRESSES else frozenset()


def block(given: IPAMBlock) -> Iterator[Problem]:
    """An IPAMBlock. One whose addresses are written as they are usually takes a look-up each."""
    spec = given.spec
    unread = list(reads("spec.cidr", spec.cidr, _network))
    yield from unread
    network = None if unread else _network(spec.cidr)
    if spec.affinity and not (spec.node or spec.affinity.startswith("virtual:")):
        yield Problem(path="spec.affinity", why=f"{spec.affinity!r} is not host:NODE")
    yield from when_set("spec.affinity", spec.node, name)
    yield from _within("spec.allocations", spec.allocations, network)
    for text, borrower in spec.borrowers.items():
        yield from reads(join("spec.borrowers", text), text, values.address)
        yield from reads(join("spec.borrowers", text), borrower, name)
    yield from _within("spec.freed", spec.freed, network)
    for text, when in spec.freed.items():
        if not _is_moment(when):
            yield from reads(join("spec.freed", text), when, moment)


def _within(path: str, addresses: Mapping[str, str], network: Network | None) -> Iterator[Problem]:
    if network is not None and addresses.keys() <= _texts(network):
        return
    for text in addresses:
        wrong = list(reads(join(path, text), text, values.address))
        yield from wrong
        if not wrong and network is not None and values.address(text) not in network:
            yield Problem(path=join(path, text), why=f"is not within {network}")


def oddly_spelt(given: IPAMBlock | IPAMHandle) -> Iterator[Problem]:
    """Addresses that are not written as they are looked up. Who reads copes with one; who writes does not do it, as one
    address under two spellings could be two pods'."""
    spec = given.spec
    if isinstance(spec, HandleSpec):
        maps: Mapping[str, Mapping[str, str]] = {"addresses": spec.addresses}
    else:
        maps = {"allocations": spec.allocations, "borrowers": spec.borrowers, "freed": spec.freed}
    for part, addresses in maps.items():
        for text in addresses:
            if ":" in text and text != str(values.address(text)):
                yield Problem(path=join(f"spec.{part}", text), why=f"is {values.address(text)}; write it so")


def affinity(given: BlockAffinity) -> Iterator[Problem]:
    """A BlockAffinity."""
    spec = given.spec
    yield from reads("spec.cidr", spec.cidr, values.network)
    yield from reads("spec.node", spec.node, name)
    yield from one_of("spec.type", spec.type, ("host", "virtual"))
    if spec.deleted not in (True, False, "true", "false", ""):
        yield Problem(path="spec.deleted", why=f"{spec.deleted!r} is neither true nor false")


def handle(given: IPAMHandle) -> Iterator[Problem]:
    """An IPAMHandle."""
    spec = given.spec
    if not 0 < len(spec.handle_id) <= MOST_HANDLE_CHARACTERS:
        why = f"has {len(spec.handle_id)} characters; a handle has 1 to {MOST_HANDLE_CHARACTERS}"
        yield Problem(path="spec.handleID", why=why)
    for text, place in spec.addresses.items():
        path = join("spec.addresses", text)
        wrong = [*reads(path, text, values.address), *reads(path, place, values.network)]
        yield from wrong
        if not wrong and values.address(text) not in values.network(place):
            yield Problem(path=path, why=f"is not within {place}")
    yield from when_set("spec.node", spec.node, name)
    yield from when_set("spec.since", spec.since, moment)


def reservation(given: IPReservation) -> Iterator[Problem]:
    """An IPReservation: addresses and CIDRs of both families, wherever they lie."""
    yield from each("spec.reservedCIDRs", given.spec.reserved_cidrs, values.network_or_address)
    yield from once("spec.reservedCIDRs", given.spec.reserved_cidrs)


def configuration(given: IPAMConfiguration) -> Iterator[Problem]:
    """An IPAMConfiguration. The limits and what excludes what are Calico's.

    maxBlocksPerHost without strictAffinity is refused by `ipam configure`, as by Calico's; a manifest may say it, and
    the one in Calico's reference does.
    """
    spec = given.spec
    if given.metadata.name != "default":
        why = f"{given.metadata.name!r} is not 'default': a cluster has one, of that name"
        yield Problem(path="metadata.name", why=why)
    if not spec.strict_affinity and not spec.auto_allocate_blocks:
        yield Problem(
            path="spec.autoAllocateBlocks",
            why="cannot be false while strictAffinity is false: nodes without a block would only borrow;"
            " set strictAffinity to true as well",
        )
    yield from within("spec.maxBlocksPerHost", spec.max_blocks_per_host, 0, MOST_BLOCKS)
    yield from within("spec.ipCooldownSeconds", spec.ip_cooldown_seconds, 0, MOST_COOLDOWN_S)
    yield from one_of("spec.kubeVirtVMAddressPersistence", spec.kube_virt_vm_address_persistence, PERSISTENCE)


def record(given: IPAMRecord) -> Iterator[Problem]:
    """An IPAMRecord."""
    spec = given.spec
    yield from reads("spec.address", spec.address, values.address)
    if not spec.handle_id:
        yield Problem(path="spec.handleID", why="is required")
    yield from when_set("spec.since", spec.since, moment)
    yield from reads("spec.until", spec.until, moment)


def _is_moment(text: str) -> bool:
    """Whether `moment` takes it, without a word of why not."""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def moment(text: str) -> datetime:
    """An RFC 3339 moment: `2026-01-31T12:00:00Z`."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time as 2026-01-31T12:00:00Z is") from None
    if found.tzinfo is None:
        raise ValueError(f"{text!r} does not say its time zone; append Z for UTC")
    return found

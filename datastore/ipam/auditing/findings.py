"""What an audit of IPAM finds: one value for each thing that is not as it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from core.addr import Address
from datastore.ipam.listing.uses import Allocation
from datastore.ipam.model import Step

Identity: TypeAlias = tuple[str, str, str]
"""What tells one finding from another, from one look to the next."""


class Fault(StrEnum):
    """The classes of inconsistency; those of `calicoctl ipam check`, and some that it does not look for."""

    LEAK = "allocated-not-used"
    UNALLOCATED = "used-not-allocated"
    OUTSIDE = "used-outside-pools"
    SEVERAL = "several-owners"
    EMPTY_HANDLE = "handle-without-addresses"
    NO_HANDLE = "address-without-handle"
    HANDLE = "handle-disagrees"
    BLOCK = "invalid-block"
    NODE_GONE = "affinity-of-no-node"
    NO_BLOCK = "affinity-without-block"
    NO_AFFINITY = "block-without-affinity"
    PENDING = "affinity-pending"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault. `what` is the address or object, `who` its holder or user ("" if none), `why` a sentence.

    With `step`, mending it is certain to harm nobody, and `remedy` says what the step does; without, `remedy` says what
    a person can do.
    """

    fault: Fault
    what: str
    who: str = ""
    why: str
    remedy: str
    step: Step | None = None

    @property
    def identity(self) -> Identity:
        """The same for the same fault of the same thing."""
        return self.fault, self.what, self.who


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """An address that is held and not used, and what that was judged on: the revision of its handle (ABSENT: it has
    none), which each ADD changes, and the uid of its pool, which no other cluster's has."""

    address: Address
    handle: str
    handle_revision: int
    pool_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """Addresses in use on one node."""

    node: str
    addresses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The audit of the state at `revision`. `notes` are nobody's fault. `stocks` has every node, the fullest first."""

    revision: int
    findings: tuple[Finding, ...]
    leaks: tuple[Leak, ...]
    notes: tuple[str, ...]
    pools: int
    blocks: int
    handles: int
    allocations: tuple[tuple[Allocation, bool], ...]
    stocks: tuple[Stock, ...]

    @property
    def median(self) -> float:
        """Of the addresses in use on a node; 0 without nodes."""
        return median([each.addresses for each in self.stocks])


def median(numbers: Sequence[int]) -> float:
    """The middle one, or the mean of the middle two; 0 for none."""
    ordered = sorted(numbers)
    half = len(ordered) // 2
    if not ordered:
        return 0.0
    return float(ordered[half]) if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2

"""Which addresses are the same to the rules in force, and what number each such class has.

    selectors ──┐                                 pods' addresses ── exact ──┐
                ├── marks on addresses and nets ──                           ├──> the peers that hold ──> class
    nets ───────┘                                 flattened ranges ──────────┘      (a signature)        (a number)

A *mark* is one selector or one list of nets of a rule. Nets that overlap are flattened into disjoint ranges that carry
the marks of every net around them. A *signature* is the family, the peers of rules that hold for those marks, and the
named ports that rules ask for: addresses with one signature cannot be told apart by any rule. World is what no mark is
on; where the peers that hold there hold elsewhere too, elsewhere is world as well and needs no element.

A class's number comes from a hash of its signature, so that a new policy does not renumber addresses it does not mean.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from core.addr import Address
from core.names import MARK_MASK
from core.selector import Selector
from policy.model import Range

CLASS_SHIFT: Final = (MARK_MASK & -MARK_MASK).bit_length() - 1
MOST_CLASSES: Final = (MARK_MASK >> CLASS_SHIFT) - 3
"""Class numbers are 1 to this; 0 is no class, which no table admits, and the three above have other meanings."""

NO_CLASS: Final = 0

BUCKETS: Final = 509
"""Into how many parts the addresses of each family are put. A prime: addresses next to one another spread evenly."""

Bucket: TypeAlias = tuple[int, int]
"""A family, and a number less than BUCKETS."""


@dataclass(frozen=True, slots=True)
class NamedPort:
    """What a rule asks of its peer: the port called `name` of `protocol`, of what `selector` matches (None: of all).

    Only what is sure counts: a rule for which more would have to does not ask for names (`policy.doubt`).
    """

    selector: Selector | None
    name: str
    protocol: int

    @property
    def text(self) -> str:
        """Canonical spelling."""
        return f"{self.name}/{self.protocol}@{self.selector.canonical if self.selector else ''}"


@dataclass(frozen=True, slots=True)
class Signature:
    """What tells addresses apart: family, texts of the peers that hold, and numbers of named ports by their text."""

    family: int
    peers: frozenset[str] = frozenset()
    ports: frozenset[tuple[str, int]] = frozenset()

    def digest(self) -> bytes:
        """The same for the same signature, in every process."""
        parts = [str(self.family), *sorted(self.peers), "", *(f"{text}={port}" for text, port in sorted(self.ports))]
        return hashlib.sha256("\n".join(parts).encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The classes and where they lie. Addresses are integers. Ranges are disjoint and in order; between them is world.

    `exact` has, by bucket (`bucket_of`), the class of each address that differs from its range's. Between two
    compilations by one compiler, a bucket, or a family's ranges, in which nothing changed is the same object.
    """

    exact: Mapping[Bucket, Mapping[int, int]] = field(default_factory=dict)
    ranges: Mapping[int, Sequence[tuple[Range, int]]] = field(default_factory=dict)
    world: Mapping[int, int] = field(default_factory=dict)
    classes: int = 0
    lost: int = 0

    def of(self, address: Address) -> int:
        """The class of an address."""
        found = self.exact.get(bucket_of(address.version, int(address)), {}).get(int(address))
        return self.around(address.version, int(address)) if found is None else found

    def around(self, family: int, address: int) -> int:
        """The class of an address that `exact` does not have."""
        ranges = self.ranges[family]
        at = bisect_right(ranges, address, key=lambda piece: piece[0][0]) - 1
        return ranges[at][1] if at >= 0 and ranges[at][0][1] >= address else self.world[family]


def bucket_of(family: int, address: int) -> Bucket:
    """Where `Identity.exact` has an address."""
    return family, address % BUCKETS

"""What IPAM is asked, and what it decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias

from core.addr import Address, Family
from core.errors import MuslinError
from core.names import Key
from core.resources import Resource
from core.resources.ipam import VIRTUAL
from datastore.api import Guard


class Use(StrEnum):
    """What an address is for; a pool's `allowedUses` speaks of it. A tunnel's comes from a pool that tunnels."""

    WORKLOAD = "Workload"
    TUNNEL = "Tunnel"
    LOAD_BALANCER = "LoadBalancer"


ON_NODES: Final = (Use.WORKLOAD, Use.TUNNEL)
"""What a pool that says nothing is for."""


class Exhausted(MuslinError):
    """No pool that may be used has a free address, or the very address that was asked for is another's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """For whom an address is: the node it is used on, and the pod, as far as there is one.

    `interface` is the host's end of the pod's wire. An address of a Service is used on no node: `node` is then an owner
    as `core.resources.ipam.LOAD_BALANCER`, whose blocks nobody routes, and `service` the name in `namespace`.
    """

    node: str
    namespace: str = ""
    pod: str = ""
    container: str = ""
    interface: str = ""
    service: str = ""

    @property
    def virtual(self) -> bool:
        """Whether the owner is no node: it has as many blocks as it needs, and borrows from nobody."""
        return self.node.startswith(VIRTUAL)

    def __str__(self) -> str:
        return f"Service {self.namespace}/{self.service}" if self.virtual else f"node {self.node}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Addresses for one handle, all of them or none: one of each family.

    `families` None is each family in which a pool serves the owner. `pools`, by family, are names or CIDRs of pools:
    only those are asked then, whatever their selectors and assignmentMode say, and one that does not exist is an
    `Invalid`. `addresses` are those wanted and no others, at most one of a family (reserved ones too, from a Manual
    pool too); the families are theirs. `needs_node`: none when the owner's node has no Node, as when it was removed
    while its machine lives: nobody would lead there. `instead_of` are addresses that go back in the same transaction,
    if the handle has them.
    """

    handle: str
    owner: Owner
    families: tuple[Family, ...] | None = None
    pools: Mapping[Family, tuple[str, ...]] = field(default_factory=dict)
    addresses: tuple[Address, ...] = ()
    use: Use = Use.WORKLOAD
    needs_node: bool = False
    instead_of: tuple[Address, ...] = ()

    def __str__(self) -> str:
        """For whom, as a reason names it."""
        return str(self.owner) if self.owner.virtual else f"{self.handle} on {self.owner}"


@dataclass(frozen=True, slots=True)
class Write:
    """Create or replace an object if its last change was at `if_revision` (ABSENT: create it)."""

    resource: Resource
    if_revision: int


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete an object if its last change was at `if_revision`."""

    key: Key
    if_revision: int


Change: TypeAlias = Write | Remove


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The addresses that a handle has, IPv4 first."""

    handle: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One transaction: all `changes` or none, and only while `guards` hold.

    `grant` None says that the decision is not over: carry this out, look again, decide again (a block is claimed
    first). No changes: there is nothing to do.
    """

    changes: tuple[Change, ...] = ()
    guards: tuple[Guard, ...] = ()
    grant: Grant | None = None

"""Kinds that say who holds which pod address: blocks, whose they are, handles, reservations, settings, the past.

    IPPool 10.244.0.0/16
      └── IPAMBlock 10.244.7.0/26 ── affinity host:node-a <── BlockAffinity node-a-10-244-7-0-26 (pending | confirmed)
            └── allocations {10.244.7.9: HANDLE} <──────────── IPAMHandle HANDLE (node, pod, container, since)
                                                      gone ──> IPAMRecord (who held it, from when to when, why it went)

An allocation and its handle are written in one transaction, and so is their end. A handle's revision is the number of
the allocation: whoever frees an address that he judged to be lost compares with it, so an address that has been given
anew meanwhile stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_network
from typing import ClassVar, Final

from msgspec import field

from core.addr import Network
from core.names import Kind
from core.resources.base import Base, Resource, calico

VIRTUAL: Final = "virtual:"
"""How an owner of blocks begins that is no node; no node has such a name."""

LOAD_BALANCER: Final = f"{VIRTUAL}load-balancer"
"""Who owns blocks of LoadBalancer pools: nobody routes them, and their addresses are Services'. Calico's spelling."""


class BlockSpec(Base, frozen=True, kw_only=True):
    """A block of a pool. `affinity` is `host:NODE` for the node that routes it ("" when free of a node), or the name
    of an owner that is no node (`LOAD_BALANCER`).

    `allocations` maps an address to the handle that holds it (`NETWORK.CONTAINER`, `ipip-tunnel-addr-NODE`);
    `borrowers` maps those that are held on another node than the block's to that node; `freed` maps addresses that were
    held once and are free to the time when they became so (RFC 3339): the one that is longest free is given first.
    """

    cidr: str
    affinity: str = ""
    allocations: Mapping[str, str] = {}
    borrowers: Mapping[str, str] = {}
    freed: Mapping[str, str] = {}

    @property
    def network(self) -> Network:
        """The block's prefix."""
        return ip_network(self.cidr)

    @property
    def node(self) -> str:
        """The node that owns the block; "" when none does."""
        return self.affinity.removeprefix("host:") if self.affinity.startswith("host:") else ""

    @property
    def owner(self) -> str:
        """Whose the block is: a node's name, an owner's that is no node (`virtual:NAME`), or "" for nobody's."""
        return self.affinity.removeprefix("host:")


class IPAMBlock(Resource, frozen=True, kw_only=True):
    """Who holds which address of one block. Named by its CIDR, `.` `:` and `/` replaced by `-`."""

    KIND: ClassVar[Kind] = calico("ipamblocks", "IPAMBlock")
    spec: BlockSpec


class AffinityState(StrEnum):
    """How far a node's claim to a block has come; only `confirmed` makes the block its own."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    PENDING_DELETION = "pendingDeletion"


class AffinitySpec(Base, frozen=True, kw_only=True):
    """That `node` wants, or has, the block `cidr`. `type` is `host`, or `virtual` when `node` names no node but an
    owner as `load-balancer`; `deleted` is Calico's and has no meaning here."""

    state: AffinityState
    node: str
    cidr: str
    type: str = "host"
    deleted: str | bool = False

    @property
    def network(self) -> Network:
        """The block's prefix."""
        return ip_network(self.cidr)

    @property
    def owner(self) -> str:
        """Who claims it, as `BlockSpec.owner` has it."""
        return f"{VIRTUAL}{self.node}" if self.type == "virtual" else self.node


class BlockAffinity(Resource, frozen=True, kw_only=True):
    """A node's claim to a block. Named `NODE-` and the block's name."""

    KIND: ClassVar[Kind] = calico("blockaffinities", "BlockAffinity")
    spec: AffinitySpec


class HandleSpec(Base, frozen=True, kw_only=True):
    """What `handleID` holds: `addresses`, each with the block it lies in; and for whom, as far as that is known.

    `interface` is the host's end of the pod's wire, `since` when the addresses were given (RFC 3339). `service` is the
    name of the Service, in `namespace`, whose load balancer's addresses they are.
    """

    handle_id: str = field(name="handleID")
    addresses: Mapping[str, str]
    node: str = ""
    namespace: str = ""
    pod: str = ""
    container: str = ""
    interface: str = ""
    service: str = ""
    since: str = ""


class IPAMHandle(Resource, frozen=True, kw_only=True):
    """One holder of addresses. Named as its `handleID` where that can be a name, else by a digest of it."""

    KIND: ClassVar[Kind] = calico("ipamhandles", "IPAMHandle")
    spec: HandleSpec


class ReservationSpec(Base, frozen=True, kw_only=True):
    """CIDRs, within pools or beyond them."""

    reserved_cidrs: list[str] = field(default_factory=list, name="reservedCIDRs")


class IPReservation(Resource, frozen=True, kw_only=True):
    """Addresses that are never given automatically; asked for by name they are."""

    KIND: ClassVar[Kind] = calico("ipreservations", "IPReservation")
    spec: ReservationSpec = ReservationSpec()


class IPAMConfigurationSpec(Base, frozen=True, kw_only=True):
    """How addresses are given. `maxBlocksPerHost` 0 is `DEFAULT_MAX_BLOCKS`; `ipCooldownSeconds` is how long a freed
    address rests before it is given again."""

    strict_affinity: bool = False
    auto_allocate_blocks: bool = True
    max_blocks_per_host: int = 0
    ip_cooldown_seconds: int = 0
    kube_virt_vm_address_persistence: str | None = field(default=None, name="kubeVirtVMAddressPersistence")

    DEFAULT_MAX_BLOCKS: ClassVar[int] = 20

    @property
    def most_blocks(self) -> int:
        """Blocks that one node may have."""
        return self.max_blocks_per_host or self.DEFAULT_MAX_BLOCKS


class IPAMConfiguration(Resource, frozen=True, kw_only=True):
    """The one named `default` counts."""

    KIND: ClassVar[Kind] = calico("ipamconfigurations", "IPAMConfiguration")
    spec: IPAMConfigurationSpec = IPAMConfigurationSpec()


class RecordSpec(Base, frozen=True, kw_only=True):
    """That `handleID` held `address` from `since` until `until` (RFC 3339), and what ended it (`why`: `DEL`, ...)."""

    address: str
    handle_id: str = field(name="handleID")
    node: str = ""
    namespace: str = ""
    pod: str = ""
    container: str = ""
    service: str = ""
    since: str = ""
    until: str
    why: str = ""


class IPAMRecord(Resource, frozen=True, kw_only=True):
    """The past of one address: one object for each holder that it had; old ones are removed by the nodes."""

    KIND: ClassVar[Kind] = Kind("muslin.io", "ipamrecords", "IPAMRecord", "v1", False)
    spec: RecordSpec

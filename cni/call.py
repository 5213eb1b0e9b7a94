"""One call about one container: what it asks, what it is done with, and the steps that ADD and DEL share."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from cni import endpoint
from cni.arguments import Attachment
from cni.conf import Conf
from cni.flows import Flows
from cni.wiring import Place
from core.endpoint_feed import Outcomes
from core.errors import Conflict
from core.latest import Latest
from core.names import Key, workload_interface
from core.resources import WorkloadEndpoint
from core.snapshot import Snapshot
from datastore import objects
from datastore.api import ABSENT, Delete, Store
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Grant

ATTEMPTS: Final = 5
"""How often what somebody else has just written is read and written again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What the agent of `node` works with. `pods` is what it follows of them. Its threads are in the node's network
    namespace: `makers` for wires that are made, `threads` for all else."""

    node: str
    store: Store
    ledger: Ledger
    outcomes: Outcomes
    pods: Latest[Snapshot]
    flows: Flows
    threads: Executor
    makers: Executor


@dataclass(frozen=True, slots=True)
class Found:
    """The endpoint in the pod's place, and the revision to write over it; None and ABSENT when there is none."""

    endpoint: WorkloadEndpoint | None = None
    revision: int = ABSENT


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked about the attachment `at` of the network `conf`. `netns` is a descriptor, None: it is gone."""

    means: Means
    conf: Conf
    at: Attachment
    netns: int | None

    @property
    def key(self) -> Key:
        """The endpoint's key."""
        return Key(WorkloadEndpoint.KIND, self.at.namespace, endpoint.name(self.means.node, self.at))

    @property
    def name(self) -> str:
        """The endpoint as felix spells it."""
        return f"{self.key.namespace}/{self.key.name}"

    @property
    def handle(self) -> str:
        """Under which IPAM keeps the container's addresses."""
        return endpoint.handle(self.conf.name, self.at)

    @property
    def place(self) -> Place:
        """Where the wire goes."""
        host = workload_interface(self.at.namespace, self.at.pod)
        return Place(host=host, inside=self.at.interface, path=self.at.netns, netns=self.netns)

    @property
    def who(self) -> Mapping[str, str]:
        """For the log."""
        return {
            "pod": f"{self.at.namespace}/{self.at.pod}",
            "container": self.at.container,
            "interface": self.place.host,
        }

    async def found(self) -> Found:
        """The endpoint in the pod's place, now."""
        read = await objects.read(self.means.store, WorkloadEndpoint, self.key.name, self.key.namespace)
        return Found(*read) if read else Found()

    def is_of(self, found: Found) -> bool:
        """Whether the endpoint is this attachment's."""
        return found.endpoint is not None and endpoint.is_of(found.endpoint, self.conf.name, self.at)

    def is_beside(self, found: Found) -> bool:
        """Whether the endpoint is the same container's, by another interface or of another network."""
        there = found.endpoint
        return there is not None and there.spec.container_id == self.at.container and not self.is_of(found)

    async def give_back(self, why: str, found: Found | None = None) -> Grant:
        """Free the container's addresses and remove its endpoint, in one transaction; what it had. Nothing is success.

        An endpoint of another container stays, and all that the container has by another interface. Raises
        `Unavailable`, or `Conflict` after ATTEMPTS lost races.
        """
        for _ in range(ATTEMPTS):
            found = found or await self.found()
            if self.is_beside(found):
                return Grant(handle=self.handle, addresses=())
            along = [Delete(self.key, found.revision)] if self.is_of(found) else []
            try:
                freed = await self.means.ledger.release(self.handle, why, along, node=self.means.node)
            except Conflict:
                found = None
                continue
            if along or not freed.addresses:
                return freed
            found = await self.found()  # an ADD that was given up may have been on its way as we looked
            if not self.is_of(found):
                return freed
        raise Conflict(str(self.key), None, None)

"""A store, a node with two pods, and felix running on it or not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from core.names import workload_interface
from core.resources import FelixStatus, Resource
from core.resources.status import FelixState
from datastore import objects
from datastore.sqlite import SqliteStore
from felix.agent import Agent
from felix.model import Config
from tests.felix.cluster import block, namespace, node, pod, pool
from tests.felix.host import HOST, PATIENCE_S, Host

WEB, DB = workload_interface("shop", "web"), workload_interface("shop", "db")
STATE: tuple[Resource, ...] = (
    node("a", f"{HOST}/24"),
    namespace("shop"),
    pool("pods", "10.0.0.0/16", nat_outgoing=True),
    pool("six", "fd00::/64"),
    block("10.0.0.0/26", "a"),
    pod("web", "10.0.0.1", "fd00::1", app="web"),
    pod("db", "10.0.0.2", "fd00::2", app="db"),
)


class Cluster:
    """A store, a node with two pods, and at most one felix at a time."""

    def __init__(self, store: SqliteStore, host: Host, run_dir: Path) -> None:
        self.store, self.host = store, host
        self.config = Config(node="a", datastore="", run_dir=run_dir)
        self.web = host.pod("web", "10.0.0.1", "fd00::1")
        self.db = host.pod("db", "10.0.0.2", "fd00::2")
        self.revision = 0
        self._felix: asyncio.Task[None] | None = None

    async def write(self, *resources: Resource) -> None:
        """Write and wait until felix has it in the kernel, when there is one."""
        self.revision = await self.store.txn([objects.put(each) for each in resources])
        if self._felix:
            await self.programmed()

    async def remove(self, resource: Resource) -> None:
        key = resource.key
        self.revision = await objects.delete(self.store, type(resource), key.name, key.namespace)
        await self.programmed()

    async def start(self) -> None:
        self._agent = Agent(self.config, self.store)
        self._felix = asyncio.create_task(self._agent.serve())
        await self.programmed()

    async def stop(self) -> None:
        if self._felix:
            self._felix.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._felix
            self._felix = None
            self._agent.close()

    async def status(self, wanted: Callable[[FelixState], bool]) -> FelixState:
        """The first status that is as wanted, also one written before."""
        async with asyncio.timeout(PATIENCE_S):
            async with contextlib.aclosing(self.store.watch(0, {FelixStatus.KIND})) as watch:
                async for _ in watch:
                    assert self._felix is None or not self._felix.done(), self._felix
                    found = await objects.read(self.store, FelixStatus, "a")
                    if found and wanted(found[0].status):
                        return found[0].status
        raise AssertionError("the watch ended")

    async def programmed(self) -> FelixState:
        return await self.status(lambda state: state.programmed >= self.revision and state.ready)

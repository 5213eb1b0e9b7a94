"""The CNI agent of one node: wiring only.

    runtime ── executable ── question ──> Server ──> Plugin ─┬─ address, endpoint, handle ── Ledger ──> datastore
       ^                                     │               ├─ wire ──────────────────────────────────> kernel
       └───────────────── answer ────────────┘               └─ up? <── Outcomes <── felix, over its socket
                                                                  │ busy
    Collector: what nobody uses ──> datastore  <──────────────────┘
    follow_pods: labels of Pods that change later ──> endpoints

It serves at once, also while the datastore or felix is away: a question then fails within its time with the reason, and
the runtime asks again. When it is told to end nobody new is let in, calls under way finish while everything that they
need still runs, and what remains is taken back. Wires, endpoints and addresses stay.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cni import server
from cni.collector import Collector, families
from cni.metrics import Metrics
from cni.model import Config
from cni.plugin import Plugin
from cni.server import Server
from core import endpoint_feed
from core.endpoint_feed import Outcomes
from core.errors import MuslinError
from core.health import Health
from core.resources import Node
from datastore import objects
from datastore.api import Store
from datastore.client import GrpcStore
from datastore.ipam.ledger import Ledger
from linux import malloc, rights
from linux.alone import alone

COMPONENTS: Final = ("datastore", "felix", server.COMPONENT, "collector")
"""What the CNI agent says of its health."""

LOOK_S: Final = 1.0
"""Seconds between two looks at felix, and at a datastore that is away."""

ASK_S: Final = 10.0
"""Seconds between two questions to a datastore that answers."""


async def run(config: Config, health: Health | None = None, metrics: Metrics | None = None) -> None:
    """Answer this node's container runtimes until cancelled.

    Raises `Unsupported` when this machine lacks what it takes, and `Unavailable` while another CNI agent has this
    network namespace.

    `health` (of COMPONENTS) hears how each part is, `metrics` what it comes to.
    """
    malloc.share_heap()
    rights.require_net_admin()
    with alone("cni"):
        store = GrpcStore(config.datastore)
        try:
            await _serve(config, store, health or Health(COMPONENTS), metrics or Metrics())
        finally:
            await store.close()


async def _serve(config: Config, store: Store, health: Health, metrics: Metrics) -> None:
    outcomes = Outcomes(config.run_dir / endpoint_feed.SOCKET)
    plugin = Plugin(config, store, Ledger(store), outcomes)
    collector = Collector(config, store, plugin.busy)
    plugin.collect_with(collector)
    metrics.also(lambda: families(collector.counts))
    async with asyncio.TaskGroup() as group:
        group.create_task(outcomes.run(), name="outcomes")
        group.create_task(collector.run(), name="collector")
        group.create_task(plugin.follow_pods(), name="pods")
        group.create_task(_watch_parts(outcomes, collector, health), name="parts")
        group.create_task(_watch_datastore(config, store, health), name="datastore")
        # Not a task among them: when we are told to end, what the last calls need is ended after they are done.
        await Server(config.run_dir / server.SOCKET, plugin.answer, health, metrics).serve()


async def _watch_parts(outcomes: Outcomes, collector: Collector, health: Health) -> None:
    while True:
        if outcomes.said is None:
            health.degraded("felix", "felix on this node is away, or not done with its start: no pod can begin")
        else:
            health.ok("felix")
        if collector.trouble:
            health.degraded("collector", f"nothing is collected: {collector.trouble}")
        else:
            health.ok("collector")
        await asyncio.sleep(LOOK_S)


async def _watch_datastore(config: Config, store: Store, health: Health) -> None:
    while True:
        try:
            found = await objects.read(store, Node, config.node)
        except MuslinError as error:
            health.degraded("datastore", str(error))
            await asyncio.sleep(LOOK_S)
            continue
        if found is None:
            health.degraded("datastore", f"there is no Node {config.node}: create it, or start with its right name")
        else:
            health.ok("datastore")
        await asyncio.sleep(ASK_S if found else LOOK_S)

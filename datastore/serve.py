"""From one line of configuration to a running datastore: backend, admission, server.

sqlite:/var/lib/muslin/datastore.db ──┐
etcd:10.0.0.1:2379,10.0.0.2:2379 ─────┴── open_store ──> Store ──┬──> server.serve_store
                                                                 └──> ipam.balancing: addresses for Services
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from core.errors import Invalid, Problem
from datastore import presence
from datastore.admission import admit as admit_resources
from datastore.api import Store
from datastore.etcd import EtcdStore
from datastore.ipam.balancing.balancer import balance
from datastore.server import Admission, serve_store
from datastore.sqlite import SqliteStore


async def open_store(backend: str) -> Store:
    """The store that `backend` names: `sqlite:PATH` or `etcd:HOST:PORT[,HOST:PORT...]`."""
    scheme, _, rest = backend.partition(":")
    if scheme == "sqlite" and rest:
        return await SqliteStore.open(Path(rest))
    if scheme == "etcd" and rest:
        return EtcdStore([endpoint.strip() for endpoint in rest.split(",")])
    raise Invalid([Problem(what=backend, why="no such backend; use sqlite:PATH or etcd:HOST:PORT[,HOST:PORT...]")])


async def serve(
    backend: str,
    listen: Sequence[str],
    *,
    admit: Admission = admit_resources,
    insecure: bool = False,
    on_ready: Callable[[Sequence[str]], None] = lambda _: None,
) -> None:
    """Open `backend` and serve it on `listen` until cancelled; see `serve_store`. The log says when it is away.

    Beside it, Services of type LoadBalancer get their addresses; any number of servers may do so over one etcd.
    """
    store = await open_store(backend)
    beside = [
        asyncio.create_task(presence.tell(store), name="datastore-presence"),
        asyncio.create_task(balance(store), name="datastore-balancing"),
    ]
    try:
        await serve_store(store, listen, admit, insecure=insecure, on_ready=on_ready)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.wait(beside)
        await store.close()

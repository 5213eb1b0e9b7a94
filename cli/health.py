"""What the processes that are not agents say of their health: the datastore asks itself, a node asks its agents."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from core.errors import MuslinError
from core.health import Health, ask, fetch
from core.names import Key
from core.resources import Node
from datastore.client import GrpcStore

EVERY_S: Final = 2.0
"""Seconds between two questions."""

STORE: Final = "datastore"


async def datastore(health: Health, address: str) -> None:
    """Keep the component STORE: whether the server at `address`, with the backend behind it, answers."""
    store = GrpcStore(address, timeout_s=EVERY_S)
    try:
        while True:
            try:
                await store.get(Key(Node.KIND, "", "asked-for-health"))
            except MuslinError as error:
                health.degraded(STORE, str(error))
            else:
                health.ok(STORE)
            await asyncio.sleep(EVERY_S)
    finally:
        await store.close()


async def agents(health: Health, sockets: Mapping[str, Path]) -> None:
    """Keep a component for each agent, and adopt the agent's own: `felix`, `felix.nft`, ..."""
    while True:
        for name, socket in sockets.items():
            try:
                components = await ask(socket)
            except (OSError, TimeoutError) as error:
                health.degraded(name, f"{name} does not run, or does not answer yet: {error}")
                health.adopt(name, {})
            else:
                health.ok(name)
                health.adopt(name, components)
        await asyncio.sleep(EVERY_S)


async def metrics(sockets: Mapping[str, Path]) -> bytes:
    """What all agents of a node measure, one after the other; one that does not answer is left out."""
    found = []
    for socket in sockets.values():
        with contextlib.suppress(OSError, TimeoutError):
            found.append(await fetch(socket, "/metrics"))
    return b"".join(found)

"""A datastore's contents for a benchmark: written once the server answers, some hundred objects to a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from core.errors import MuslinError
from core.resources import Node, Resource
from datastore import objects
from datastore.client import GrpcStore

READY_S: Final = 120.0
"""How long that may take, the server's start with it."""

WRITES: Final = 500
AGAIN_S: Final = 0.05


async def fill(datastore: str, state: Sequence[Resource]) -> None:
    """Put all of `state` into `datastore`."""
    store = GrpcStore(datastore)
    try:
        async with asyncio.timeout(READY_S):
            while True:
                try:
                    await store.list({Node.KIND})
                    break
                except MuslinError:
                    await asyncio.sleep(AGAIN_S)
            for start in range(0, len(state), WRITES):
                await store.txn([objects.put(each) for each in state[start : start + WRITES]])
    finally:
        await store.close()

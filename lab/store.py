"""The lab's way to its own datastore: opened where it is needed, read as resources."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core import manifest
from core.resources import R
from datastore.api import Store
from datastore.client import GrpcStore


@asynccontextmanager
async def opened(target: str, given: Store | None = None) -> AsyncIterator[Store]:
    """The store that the caller has already, or one at `target` for the length of the block."""
    if given is not None:
        yield given
        return
    store = GrpcStore(target)
    try:
        yield store
    finally:
        await store.close()


async def read(store: Store, cls: type[R]) -> list[R]:
    """Every object of one kind."""
    found = [manifest.decode(entry.key, entry.value) for entry in (await store.list({cls.KIND})).entries]
    return [each for each in found if isinstance(each, cls)]

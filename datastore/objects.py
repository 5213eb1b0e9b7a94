"""Typed resources in and out of a store, one at a time."""

from __future__ import annotations

from core.manifest import decode, encode
from core.names import Key
from core.resources import R, Resource
from datastore.api import ABSENT, Delete, Put, Store


async def read(store: Store, cls: type[R], name: str, namespace: str = "") -> tuple[R, int] | None:
    """A resource and the revision of its last change; None when there is none. `Invalid` when it does not decode."""
    entry = await store.get(Key(cls.KIND, namespace, name))
    if entry is None:
        return None
    resource = decode(entry.key, entry.value)
    assert isinstance(resource, cls)
    return resource, entry.revision


def put(resource: Resource, if_revision: int | None = None) -> Put:
    """The operation that writes `resource`, for a transaction."""
    return Put(resource.key, encode(resource), if_revision)


async def create(store: Store, resource: Resource) -> int:
    """Write a resource that must not exist yet; its revision. Raises `Conflict` when it does."""
    return await write(store, resource, ABSENT)


async def write(store: Store, resource: Resource, if_revision: int | None = None) -> int:
    """Create or replace a resource, if its last change was at `if_revision` (None: in any case); its revision."""
    return await store.txn([put(resource, if_revision)])


async def delete(
    store: Store, cls: type[Resource], name: str, namespace: str = "", *, revision: int | None = None
) -> int:
    """Remove a resource, if its last change was at `revision` (None: in any case); gone already is a success."""
    return await store.txn([Delete(Key(cls.KIND, namespace, name), revision)])

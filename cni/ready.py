"""Wait until felix says that an endpoint is up: a pod never starts before its policy is in the kernel."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from core.errors import MuslinError
from core.resources import FelixStatus
from datastore import objects
from datastore.api import Changes, Compacted, Store


class NotProgrammed(MuslinError):
    """Felix has not programmed the endpoint in time."""


async def until_up(store: Store, node: str, endpoint: str, revision: int, wait_s: float) -> None:
    """Return when felix on `node` has `endpoint` ("namespace/name"), as written at `revision`, up.

    Raises `NotProgrammed` with what felix last said after `wait_s` seconds.
    """
    last = f"felix has never reported from node {node}; is it running there, and is that the Node's name?"
    try:
        async with asyncio.timeout(wait_s):
            while True:
                found = await objects.read(store, FelixStatus, node)
                if found is not None:
                    last = why_not(found[0], endpoint, revision)
                    if not last:
                        return
                await _changed(store, node, max(revision, found[1] if found else 0))
    except TimeoutError:
        raise NotProgrammed(f"the pod was not programmed within {wait_s:g} s: {last}") from None


def why_not(said: FelixStatus, endpoint: str, revision: int) -> str:
    """Why the endpoint as of `revision` is not up; "" when it is."""
    state = said.status
    if state.decided < revision:
        away = "; the datastore is away, it says" if state.stale else ""
        return f"felix on {said.metadata.name} has come to revision {state.decided} of {revision}{away}"
    found = state.endpoints.get(endpoint)
    if found is None:
        return f"felix on {said.metadata.name} does not know {endpoint}"
    return "" if found.state == "up" else f"{found.state}: {found.reason}"


async def _changed(store: Store, node: str, after: int) -> None:
    """Return when the node's status has been written after revision `after`, or that cannot be known."""
    async with aclosing(store.watch(after, {FelixStatus.KIND})) as items:
        async for item in items:
            match item:
                case Changes() if any(event.key.name == node for event in item.events):
                    return
                case Compacted():
                    return

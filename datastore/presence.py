"""Say in the log when the backend behind a server is away, and when it is back; once for each outage.

A server listens whether or not its etcd answers, and each call says `Unavailable` to its own caller only. This is the
word for the person who reads the server's log.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from core.errors import MuslinError
from core.names import Key
from core.resources import Node
from datastore.api import Store

log = structlog.get_logger()

EVERY_S: Final = 2.0
"""Seconds between two questions."""

NOBODY: Final = Key(Node.KIND, "", "asked-for-presence")


async def tell(store: Store, every_s: float = EVERY_S) -> None:
    """Ask `store` every so many seconds, until cancelled."""
    away = False
    while True:
        why = await _why_away(store)
        if why and not away:
            log.warning("datastore.backend_away", why=why)
        elif away and not why:
            log.info("datastore.backend_back")
        away = bool(why)
        await asyncio.sleep(every_s)


async def _why_away(store: Store) -> str:
    """Asked twice: one endpoint of several that fails is passed over by the second call. "" when it answers."""
    why = ""
    for _ in range(2):
        try:
            await store.get(NOBODY)
        except MuslinError as error:
            why = str(error)
        else:
            return ""
    return why

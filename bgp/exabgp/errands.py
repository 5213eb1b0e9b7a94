"""Commands that are given to ExaBGP once, besides what the reconciler tells: end a session, ask a peer for everything.

One that cannot be given is dropped: ExaBGP is gone, and with it the session that it was about.
"""

from __future__ import annotations

import asyncio
from collections import deque

import structlog

from bgp.exabgp.line import Command, encode
from bgp.telling.adverts import Send
from core.errors import Unavailable

log = structlog.get_logger()


class Errands:
    """Commands on their way to `send`, in order."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: deque[Command] = deque()
        self._more = asyncio.Event()

    def add(self, command: Command) -> None:
        """Have it given soon."""
        self._waiting.append(command)
        self._more.set()

    async def run(self) -> None:
        """Give what there is to give, until cancelled."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._waiting:
                command = self._waiting.popleft()
                try:
                    accepted = await self._send(command)
                except Unavailable as away:
                    log.warning("exabgp.not_asked", command=encode(command), why=str(away))
                else:
                    log.info("exabgp.asked", command=encode(command), accepted=accepted)

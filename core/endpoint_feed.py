"""What felix has made of this host's endpoints, told to whoever listens on the host, without the datastore between.

    felix ── tell(state) ──> Feed ── UNIX socket, JSON lines: whole first, then what changed ──> Outcomes ──> CNI

The status in the datastore says the same, later and for everybody. A pod that is being started waits for this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from core.errors import MuslinError
from core.resources.status import FelixState

SOCKET: Final = "felix.endpoints"
"""The socket's name in felix's run directory."""


class NotProgrammed(MuslinError):
    """Felix has not programmed the endpoint in time."""


class Feed:
    """Felix's side. A listener that does not read is let go, never waited for."""

    def tell(self, state: FelixState) -> None:
        """Felix's state is now `state`."""
        raise NotImplementedError

    async def serve(self, path: Path) -> None:
        """Answer listeners at `path` until cancelled."""
        raise NotImplementedError


class Outcomes:
    """The listener's side: what felix last said. Connects again whenever felix was away."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def run(self) -> None:
        """Listen until cancelled."""
        raise NotImplementedError

    @property
    def said(self) -> FelixState | None:
        """What felix last said; None while it is away."""
        raise NotImplementedError

    async def until_up(self, endpoint: str, revision: int, wait_s: float) -> None:
        """Return when felix has `endpoint` ("namespace/name"), as written at `revision`, up.

        Raises `NotProgrammed` with what felix last said of it, or that felix is away, after `wait_s` seconds.
        """
        raise NotImplementedError

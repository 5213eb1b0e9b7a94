"""How a process feels: each component is starting, ok or degraded (why, since when); told over HTTP when asked.

    GET /liveness     200 while the process answers at all
    GET /readiness    200 when every component is ok, 503 otherwise

Both answer with the same JSON, so that a person sees why. Served on a UNIX socket or on loopback only: there is
no authentication, and nothing here is for strangers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec

from core.errors import Invalid, Problem

REQUEST_BOUND: Final = 4096
"""Longest request that is read, in bytes."""

REQUEST_S: Final = 5.0
"""How long a client may take over its request."""


class State(StrEnum):
    """What a component says of itself."""

    STARTING = "starting"
    OK = "ok"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One component's state since a moment (RFC 3339, UTC); `reason` says why it is not ok."""

    state: State
    since: str
    reason: str = ""


class Health:
    """The components of one process. All start as `starting`; `since` moves only when the state does."""

    def __init__(self, components: Iterable[str]) -> None:
        self._components = {name: Component(state=State.STARTING, since=_now()) for name in components}

    def ok(self, name: str) -> None:
        """The component works."""
        self._set(name, State.OK, "")

    def degraded(self, name: str, reason: str) -> None:
        """The component works in part or not at all; `reason` is a sentence."""
        self._set(name, State.DEGRADED, reason)

    @property
    def ready(self) -> bool:
        """Whether every component is ok."""
        return all(component.state is State.OK for component in self._components.values())

    def report(self) -> bytes:
        """The JSON that both addresses answer with."""
        components = {name: asdict(component) for name, component in self._components.items()}
        return msgspec.json.encode({"ready": self.ready, "components": components})

    def _set(self, name: str, state: State, reason: str) -> None:
        before = self._components[name]
        since = before.since if before.state is state else _now()
        self._components[name] = Component(state=state, since=since, reason=reason)


async def serve(health: Health, address: str) -> None:
    """Answer on `unix:PATH` or `127.0.0.1:PORT` (`[::1]:PORT`) until cancelled. Another address is `Invalid`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_S)
            writer.write(_response(health, head))
            await writer.drain()
        writer.close()

    path = Path(address.removeprefix("unix:")) if address.startswith("unix:") else None
    if path:
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(answer, path, limit=REQUEST_BOUND)
        os.chmod(path, 0o600)
    else:
        host, port = _loopback(address)
        server = await asyncio.start_server(answer, host, port, limit=REQUEST_BOUND)
    try:
        async with server:
            await server.serve_forever()
    finally:
        if path:
            path.unlink(missing_ok=True)


def _response(health: Health, head: bytes) -> bytes:
    target = head.split(b" ")[1] if head.startswith(b"GET ") and head.count(b" ") >= 2 else b""
    if target == b"/liveness":
        status = "200 OK"
    elif target == b"/readiness":
        status = "200 OK" if health.ready else "503 Service Unavailable"
    else:
        status = "404 Not Found"
    body = b"" if status.startswith("404") else health.report()
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def _loopback(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    with contextlib.suppress(ValueError):
        if ip_address(host).is_loopback:
            return host, int(port)
    raise Invalid([Problem(why="health is served on unix:PATH, 127.0.0.1:PORT or [::1]:PORT only", what=address)])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

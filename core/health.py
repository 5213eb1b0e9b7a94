"""How a process feels: each component is starting, ok or degraded (why, since when); told over HTTP when asked.

    GET /liveness     200 while the process answers at all
    GET /readiness    200 when every component is ok, 503 otherwise
    GET /metrics      what the process measures, for Prometheus

The first two answer with the same JSON, so that a person sees why. Served on a UNIX socket or on loopback only: there
is no authentication, and nothing here is for strangers. A thread of its own answers, so that work in the process's
loop, however long, never looks like death: who restarts an agent that is busy makes it begin again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from core import clock
from core.errors import Invalid, Problem, Unsupported
from core.metrics import CONTENT_TYPE
from core.reconcile import Progress

REQUEST_BOUND: Final = 4096
"""Longest request that is read, in bytes."""

REQUEST_S: Final = 5.0
"""How long a client may take over its request, and a server over its answer."""

REASON_ERRORS: Final = 3
"""Errors of one reconciler that its reason repeats."""


class State(StrEnum):
    """What a component says of itself."""

    STARTING = "starting"
    OK = "ok"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One component's state since a moment (RFC 3339, UTC); `reason` says why it is not ok, or what it lacks."""

    state: State
    since: str
    reason: str = ""


class Health:
    """The components of one process. All start as `starting`; `since` moves only when the state does.

    Read by the thread that answers: what is shared is replaced whole.
    """

    def __init__(self, components: Iterable[str]) -> None:
        self._components = {name: Component(state=State.STARTING, since=clock.now()) for name in components}

    def starting(self, name: str, reason: str) -> None:
        """The component waits for something."""
        self._set(name, State.STARTING, reason)

    def ok(self, name: str, but: str = "") -> None:
        """The component works; `but` says what of it does not and keeps nobody from being ready."""
        self._set(name, State.OK, but)

    def degraded(self, name: str, reason: str) -> None:
        """The component works in part or not at all; `reason` is a sentence."""
        self._set(name, State.DEGRADED, reason)

    def round(self, name: str, progress: Progress) -> None:
        """A reconciler's round: ok once something has been wholly programmed and nothing is wrong since."""
        if why := trouble(progress):
            self.degraded(name, why)
        elif progress.revision:
            self.ok(name)

    def adopt(self, prefix: str, components: Mapping[str, Component]) -> None:
        """Take over what another process says of itself, as `prefix.NAME`; forget what it said before."""
        others = {name: each for name, each in self._components.items() if not name.startswith(f"{prefix}.")}
        self._components = {**others, **{f"{prefix}.{name}": each for name, each in components.items()}}

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
        since = before.since if before.state is state else clock.now()
        self._components = {**self._components, name: Component(state=state, since=since, reason=reason)}


def trouble(progress: Progress) -> str:
    """What went wrong in a reconciler's last round, as a sentence; "" when nothing did."""
    if progress.failure:
        return progress.failure
    errors = sorted({f"{key}: {why}" for key, why in progress.errors.items()})
    more = [f"and {len(errors) - REASON_ERRORS} more"] if len(errors) > REASON_ERRORS else []
    return "; ".join([*errors[:REASON_ERRORS], *more])


Exposition: TypeAlias = Callable[[], Awaitable[bytes]]
"""Gives what `/metrics` answers. Awaited in the loop of the thread that answers."""


async def nothing() -> bytes:
    """The exposition of a process that measures nothing."""
    return b""


async def serve(health: Health, address: str, metrics: Exposition = nothing) -> None:
    """Answer on `unix:PATH` or `127.0.0.1:PORT` (`[::1]:PORT`) until cancelled.

    Raises `Invalid` for another address, `Unsupported` for one that cannot be listened on.
    """
    path = Path(address.removeprefix("unix:")) if address.startswith("unix:") else None
    place = path or _loopback(address)
    own, stop = asyncio.new_event_loop(), asyncio.Event()
    answering = asyncio.get_running_loop().run_in_executor(None, _in(own, _answer(health, metrics, place, stop)))
    try:
        await asyncio.shield(answering)
    except OSError as error:
        raise Unsupported(f"cannot serve health on {address}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has just ended by itself
            own.call_soon_threadsafe(stop.set)
        await asyncio.wait([answering])


async def ask(path: Path) -> Mapping[str, Component]:
    """What the process that serves health on a UNIX socket says of itself. Raises OSError when none does."""
    body = await fetch(path, "/readiness")
    try:
        return msgspec.json.decode(body, type=_Report).components
    except msgspec.DecodeError as error:
        raise ConnectionError(f"{path} does not answer as health does: {error}") from error


async def fetch(path: Path, target: str) -> bytes:
    """The body that the process on a UNIX socket answers `target` with. Raises OSError when none does."""
    async with asyncio.timeout(REQUEST_S):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(f"GET {target} HTTP/1.1\r\nHost: local\r\n\r\n".encode())
            return (await reader.read()).partition(b"\r\n\r\n")[2]
        finally:
            writer.close()


class _Report(msgspec.Struct):
    components: dict[str, Component]


def _in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> Callable[[], None]:
    """Run `work` in `loop` to its end, with everything it started, in whatever thread calls."""

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(work)

    return run


async def _answer(health: Health, metrics: Exposition, place: Path | tuple[str, int], stop: asyncio.Event) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await _response(health, metrics, head))
                await writer.drain()
        writer.close()

    if isinstance(place, Path):
        _remove(place)
        server = await asyncio.start_unix_server(answer, place, limit=REQUEST_BOUND)
        os.chmod(place, 0o600)
    else:
        server = await asyncio.start_server(answer, *place, limit=REQUEST_BOUND)
    try:
        async with server:
            await stop.wait()
    finally:
        if isinstance(place, Path):
            _remove(place)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _response(health: Health, metrics: Exposition, head: bytes) -> bytes:
    target = head.split(b" ")[1] if head.startswith(b"GET ") and head.count(b" ") >= 2 else b""
    status, kind, body = "200 OK", "application/json", b""
    if target == b"/metrics":
        kind, body = CONTENT_TYPE, await metrics()
    elif target in (b"/liveness", b"/readiness"):
        body = health.report()
        if target == b"/readiness" and not health.ready:
            status = "503 Service Unavailable"
    else:
        status = "404 Not Found"
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def _loopback(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    with contextlib.suppress(ValueError):
        if ip_address(host).is_loopback:
            return host, int(port)
    raise Invalid([Problem(why="health is served on unix:PATH, 127.0.0.1:PORT or [::1]:PORT only", what=address)])

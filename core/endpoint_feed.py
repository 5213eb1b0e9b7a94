"""What felix has made of this host's endpoints, told to whoever listens on the host, without the datastore between.

    felix ── tell(state) ──> Feed ── UNIX socket, JSON lines: whole first, then what changed ──> Outcomes ──> CNI
                              │
                              └── for each listener: what it was told last, and whether that is old. No queue: a
                                  listener that is slow hears less often; one that does not read at all is let go

The status in the datastore says the same, later and for everybody. A pod that is being started waits for this.

A listener believes the felix at the other end of its connection and nobody else: when the connection goes, felix is
away, and the one that comes back says everything anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import structlog
from msgspec.structs import replace

from core.errors import MuslinError, Unsupported
from core.resources.status import EndpointState, FelixState

SOCKET: Final = "felix.endpoints"
"""The socket's name in felix's run directory."""

MOST_LISTENERS: Final = 32
"""More are turned away: a host has one CNI agent, and somebody may look on."""

PATIENCE_S: Final = 5.0
"""Seconds after which a listener that does not read is let go."""

LINE_BOUND: Final = 1 << 26
"""Bytes of the longest line that a listener takes: room for 100,000 endpoints."""

RETRY_S: Final = 0.02
MOST_RETRY_S: Final = 0.2
"""A felix that is away is tried again after so many seconds, at first and at last."""

log = structlog.get_logger()


class NotProgrammed(MuslinError):
    """Felix has not programmed the endpoint in time."""


class News(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One line. `state` names the endpoints that changed alone, unless it is `whole`, and no problems: those are in
    `problems`, when they are others than before. `gone` are endpoints that are no more."""

    state: FelixState
    whole: bool = False
    gone: list[str] = []
    problems: list[str] | None = None


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(News)


def difference(before: FelixState | None, now: FelixState) -> News:
    """What turns `before` into `now`."""
    told: Mapping[str, EndpointState] = before.endpoints if before else {}
    return News(
        state=replace(
            now,
            endpoints={name: each for name, each in now.endpoints.items() if told.get(name) != each},
            problems=[],
        ),
        whole=before is None,
        gone=[name for name in told if name not in now.endpoints],
        problems=now.problems if before is None or before.problems != now.problems else None,
    )


def after(before: FelixState | None, news: News) -> FelixState:
    """What `before` is turned into."""
    if before is None or news.whole:
        return replace(news.state, problems=news.problems or [])
    endpoints = {**before.endpoints, **news.state.endpoints}
    for name in news.gone:
        endpoints.pop(name, None)
    return replace(
        news.state, endpoints=endpoints, problems=before.problems if news.problems is None else news.problems
    )


def why_not(said: FelixState, endpoint: str, revision: int, link: int = 0) -> str:
    """Why the endpoint ("namespace/name") as of `revision` is not up; "" when it is.

    `link`, when given, is the index of the interface by which it is to be reached.
    """
    if said.decided < revision:
        away = "; the datastore is away, it says" if said.stale else ""
        return f"felix has come to revision {said.decided} of {revision}{away}"
    found = said.endpoints.get(endpoint)
    if found is None:
        return f"felix does not know {endpoint}"
    if found.state != "up":
        return f"{found.state}: {found.reason}"
    return "" if link in (0, found.link) else f"felix has not seen interface {link} yet, but {found.link}"


class Feed:
    """Felix's side. A listener that does not read is let go, never waited for. All in one event loop."""

    def __init__(self) -> None:
        self._state: FelixState | None = None
        self._listeners: set[asyncio.Event] = set()

    def tell(self, state: FelixState) -> None:
        """Felix's state is now `state`."""
        self._state = state
        for news in self._listeners:
            news.set()

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    async def serve(self, path: Path) -> None:
        """Answer listeners at `path` until cancelled; what an earlier felix left there is replaced.

        Raises `Unsupported` when there can be no socket of that name.
        """
        async with asyncio.TaskGroup() as talks:

            def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                talks.create_task(self._talk(reader, writer))

            try:
                _make_room(path)
                server = await asyncio.start_unix_server(answer, path)
                os.chmod(path, 0o600)
            except OSError as error:
                raise Unsupported(f"cannot listen on {path}: {error}; is it short and its folder writable?") from error
            try:
                await asyncio.get_running_loop().create_future()  # until cancelled
            finally:
                server.close()
                _make_room(path)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        news = asyncio.Event()
        leaving = asyncio.create_task(_left(reader))
        leaving.add_done_callback(lambda _: news.set())
        try:
            if len(self._listeners) < MOST_LISTENERS:
                self._listeners.add(news)
                await self._keep_told(news, leaving, writer)
        except TimeoutError:
            log.warning("feed.listener_let_go", why=f"it has not read for {PATIENCE_S:g} s")
        except OSError:
            pass  # it is gone
        finally:
            self._listeners.discard(news)
            leaving.cancel()
            writer.transport.abort()

    async def _keep_told(self, news: asyncio.Event, leaving: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        """Say everything, and then what changed, until the listener leaves."""
        writer.transport.set_write_buffer_limits(high=0)
        told: FelixState | None = None
        while not leaving.done():
            now = self._state
            if now is not None and now is not told:
                writer.write(_ENCODER.encode(difference(told, now)) + b"\n")
                told = now
                async with asyncio.timeout(PATIENCE_S):
                    await writer.drain()
            if self._state is told:
                news.clear()
                await news.wait()


def _make_room(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


async def _left(reader: asyncio.StreamReader) -> None:
    """Return when the other end has closed; what it says is not listened to."""
    with contextlib.suppress(OSError):
        while await reader.read(4096):
            pass


@dataclass(slots=True, eq=False)
class _Waiter:
    """Somebody who waits for an endpoint."""

    endpoint: str
    revision: int
    link: int
    up: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Outcomes:
    """The listener's side: what felix last said. Connects again whenever felix was away. All in one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said: FelixState | None = None
        self._there = False
        self._waiters: set[_Waiter] = set()

    async def run(self) -> None:
        """Listen until cancelled."""
        failures = 0
        while True:
            heard = await self._listen()
            failures = 0 if heard else failures + 1
            await asyncio.sleep(min(MOST_RETRY_S, RETRY_S * 2.0 ** min(failures, 10)))

    async def _listen(self) -> bool:
        """Hear one felix out; whether it said anything."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._path, limit=LINE_BOUND)
        except OSError:
            return False
        self._there, heard = True, False
        try:
            async for line in reader:
                if not line.endswith(b"\n"):
                    break  # felix ended in the middle of it
                self._hear(_DECODER.decode(line))
                heard = True
        except OSError:
            pass  # it is gone, as when there are no more lines
        except (ValueError, msgspec.DecodeError) as error:  # too long, or not what a felix of this version says
            log.warning("feed.not_understood", socket=str(self._path), why=str(error))
        finally:
            self._said, self._there = None, False
            writer.transport.abort()
        return heard

    def _hear(self, news: News) -> None:
        """Costs what changed, and a look at each who waits."""
        said = self._said = after(self._said, news)
        for waiter in self._waiters:
            if not waiter.up.done() and not why_not(said, waiter.endpoint, waiter.revision, waiter.link):
                waiter.up.set_result(None)

    @property
    def said(self) -> FelixState | None:
        """What felix last said; None while it is away, or has not decided anything yet."""
        return self._said

    def why_not(self, endpoint: str, revision: int = 0, link: int = 0) -> str:
        """Why felix does not have the endpoint up, as of `revision`; "" when it has. See the function of that name."""
        if self._said is not None:
            return why_not(self._said, endpoint, revision, link)
        return "felix on this node has not decided anything yet" if self._there else "felix on this node is away"

    async def until_up(self, endpoint: str, revision: int, wait_s: float, *, link: int = 0) -> None:
        """Return when felix has `endpoint` ("namespace/name"), as written at `revision`, up.

        `link`, when given, is the index of the endpoint's interface on the host: a pod that comes again soon has the
        same name for another interface, and felix may speak of the former one for some milliseconds. Raises
        `NotProgrammed` with what felix last said of it, or that felix is away, after `wait_s` seconds.
        """
        if not self.why_not(endpoint, revision, link):
            return
        waiter = _Waiter(endpoint, revision, link)
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(wait_s):
                await waiter.up
        except TimeoutError:
            why = self.why_not(endpoint, revision, link)
            if why:
                raise NotProgrammed(f"the pod was not programmed within {wait_s:g} s: {why}") from None
        finally:
            self._waiters.discard(waiter)

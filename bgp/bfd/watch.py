"""The agent's side of BFD: which peers' paths are watched, and what is known of them.

    configure ──> order ──> child (bgp.bfd.__main__), started or adopted ──> router
    on_change, states <──── reports <──┘

A child that an earlier agent left is taken over with its sessions; one of another version is told to end first. No
session wanted: no child. When the agent ends the child goes on for `linger_s`.

What follows from a state is the agent's affair, and it is little. `lost` is the one thing to act on: the path was up
and has failed, so nothing goes that way any more. Every other way of not being up (the peer has no BFD, switched it
off, has not come up yet, our child is being started) says nothing against the path, and BGP's hold time still
watches it (RFC 5882, 3.2 and 4.1).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import structlog

from bgp.bfd.lines import VERSION, Hello, Late, Order, Report, decode_message, encode
from bgp.bfd.model import Diagnostic, Standing, State, Wanted
from bgp.bfd.sockets import call_box
from bgp.model import Bfd as Intervals
from core.addr import Address
from core.reconcile import Timing

LINGER_S: Final = 120.0
"""How long sessions stand without an agent: the restart time that peers are asked for, too."""

HELLO_S: Final = 5.0
END_S: Final = 5.0
RESUME_S: Final = 2.0
"""How long after a child's death its sessions are worth going on with."""

LATE_LOG_S: Final = 10.0
LIMIT: Final = 1024 * 1024

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class BfdState:
    """What is known of the path to a peer.

    `up` is whether both sides hear each other. `lost` says that they did, and that the path then failed: act on it.
    `came_up` is whether they ever did. `reason` is why it is not up, for a person. `since` is when it last changed, in
    seconds of the wall clock. `interval_ms` is how often we send, `detection_ms` after how long a silence the path
    counts as failed. `losses` counts the failures since the session was configured.
    """

    up: bool = False
    lost: bool = False
    came_up: bool = False
    state: str = State.DOWN.label
    reason: str = "not started yet"
    since: float = 0.0
    interval_ms: float = 0.0
    detection_ms: float = 0.0
    losses: int = 0


OnChange = Callable[[Address, BfdState], None]


class Bfd:
    """The child and its sessions. `on_change` hears once that a path is lost, once that it is up, and of other reasons
    why it is neither; never twice of one loss.

    `pid` is the child, 0 while there is none, `priority` by what right it keeps its times, and `problem` why there is
    no child though there should be.
    """

    def __init__(self, run_dir: Path, on_change: OnChange, *, linger_s: float = LINGER_S) -> None:
        self._run_dir, self._on_change, self._linger_s = run_dir, on_change, linger_s
        self._socket, self._errors = run_dir / "bfd.sock", run_dir / "bfd.err"
        self._order: Order | None = None
        self._changed = asyncio.Event()
        self._states: dict[Address, BfdState] = {}
        self._ours = 0  # the child that is ours to wait for
        self._reports: dict[str, Report] = {}
        self._standing: Mapping[str, Standing] = {}  # of the child that died last
        self._died_at = self._late_said = float("-inf")
        self.pid = 0
        self.priority = ""
        self.problem = ""

    def configure(self, sessions: Mapping[Address, tuple[Address | None, Intervals]]) -> None:
        """State which peers to watch, from which address of ours (None: any) and how; cheap."""
        wanted = {
            str(peer): ("" if local is None else str(local), _wanted(how)) for peer, (local, how) in sessions.items()
        }
        order = Order(sessions=wanted, linger_s=self._linger_s)
        if order == self._order:
            return
        self._order = order
        self._states = {peer: self._states.get(peer, BfdState()) for peer in sessions}
        self._changed.set()

    def states(self) -> Mapping[Address, BfdState]:
        """What is known of every configured peer's path."""
        return dict(self._states)

    async def run(self) -> None:
        """Keep the child as configured until cancelled; it then goes on alone."""
        timing = Timing(retry_s=0.05, retry_max_s=5.0)
        failures = 0
        while True:
            await self._wanted_or_left()
            lasted = await self._one_life()
            failures = 0 if lasted > timing.retry_max_s else failures + 1
            if failures:
                await asyncio.sleep(timing.backoff(failures))

    async def _wanted_or_left(self) -> None:
        """Until it is known what is wanted, and there is something: sessions, or the child of an earlier agent."""
        while self._order is None or not (self._order.sessions or self._socket.exists()):
            await self._changed.wait()
            self._changed.clear()

    async def _one_life(self) -> float:
        """From a connection, to a child found or started, to its end; how long it lasted, in seconds."""
        begun = time.monotonic()
        try:
            reader, writer = await self._connect()
        except OSError as refusal:
            self._lose(f"BFD's process cannot be started: {refusal.strerror or refusal}")
            return 0.0
        try:
            async with asyncio.TaskGroup() as group:
                if await self._greet(reader):
                    follow = group.create_task(self._follow_order(writer))
                    await self._listen(reader)
                    follow.cancel()
                else:
                    writer.write(encode(Order(stop=True)))
                    await reader.read()
        except* (OSError, ValueError) as broken:
            log.warning("bfd.connection_lost", why=str(broken.exceptions[0]))
        finally:
            writer.close()
        self._lose(f"BFD's process has ended and is started again {self._last_words()}".strip())
        await self._end()
        return time.monotonic() - begun

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_unix_connection(self._socket, limit=LIMIT)
        except (FileNotFoundError, ConnectionRefusedError):
            self._start()
            return await asyncio.open_unix_connection(self._socket, limit=LIMIT)

    def _start(self) -> None:
        self._socket.unlink(missing_ok=True)
        if self._order is not None and not self._order.sessions:
            raise FileNotFoundError(2, "nobody wants it")
        child = str(Path(__file__).with_name("__main__.py"))
        with call_box(str(self._socket)) as box:
            self._ours = os.posix_spawn(
                sys.executable,
                [sys.executable, "-S", "-E", "-P", child],
                {"LC_ALL": "C.UTF-8"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, box.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, str(self._errors), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                ],
                setsid=True,
            )
        log.info("bfd.started", pid=self._ours)

    async def _follow_order(self, writer: asyncio.StreamWriter) -> None:
        """Tell the child what is wanted, now and whenever it changes."""
        while True:
            order = self._order
            assert order is not None
            writer.write(encode(replace(order, resume=self._resumable()) if order.sessions else Order(stop=True)))
            await writer.drain()
            await self._changed.wait()
            self._changed.clear()

    def _resumable(self) -> Mapping[str, Standing]:
        """What was up when a child died, if its peers cannot have missed it for long."""
        standing, self._standing = self._standing, {}
        return standing if time.monotonic() - self._died_at < RESUME_S else {}

    async def _greet(self, reader: asyncio.StreamReader) -> bool:
        """Hear who the child is; whether it is one that we can tell what to do."""
        async with asyncio.timeout(HELLO_S):
            hello = decode_message(await reader.readline())
        if not isinstance(hello, Hello):
            raise ValueError("BFD's process did not say who it is")
        log.info("bfd.child", pid=hello.pid, priority=hello.priority, adopted=hello.pid != self._ours)
        if hello.version == VERSION:
            self.pid, self.priority, self.problem = hello.pid, hello.priority, ""
        return hello.version == VERSION

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Hear the child until it ends."""
        while line := await reader.readline():
            message = decode_message(line)
            if isinstance(message, Report):
                self._learn(message)
            elif isinstance(message, Late) and time.monotonic() - self._late_said >= LATE_LOG_S:
                self._late_said = time.monotonic()
                log.warning("bfd.late", seconds=message.late_s, priority=self.priority)

    def _learn(self, report: Report) -> None:
        peer = ip_address(report.peer)
        before, after = self._states.get(peer), _state(report)
        if before is None:
            return  # the last words of a session that was just taken out
        self._reports[report.peer] = report
        self._states[peer] = after
        if (before.up, before.lost) != (after.up, after.lost):
            log.info("bfd.state", peer=report.peer, state=after.state, lost=after.lost, why=after.reason)
        if (before.up, before.lost) != (after.up, after.lost) or (before.reason != after.reason and not after.lost):
            self._on_change(peer, after)

    def _lose(self, why: str) -> None:
        """Nothing is known of any path; that is no reason to leave it."""
        self.pid, self.priority = 0, ""
        self._standing = {peer: each.standing for peer, each in self._reports.items() if each.standing}
        self._reports, self._died_at = {}, time.monotonic()
        if self._order is None or not self._order.sessions:
            self.problem = ""
            return
        self.problem = why
        log.warning("bfd.ended", why=why)
        for peer in self._states:
            unknown = BfdState(reason=why, since=time.time())
            self._states[peer] = unknown
            self._on_change(peer, unknown)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._errors.read_text(errors="replace").split("\n")
            said = [line.strip() for line in lines if line.strip()]
            return f"({said[-1][:200]})" if said else ""
        return ""

    async def _end(self) -> None:
        """Wait for a child of ours to be gone; one that stays though it has let us go is killed."""
        if not self._ours:
            return
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        handle = os.pidfd_open(self._ours)
        loop.add_reader(handle, gone.set)
        try:
            async with asyncio.timeout(END_S):
                await gone.wait()
        except TimeoutError:
            os.kill(self._ours, signal.SIGKILL)
        finally:
            loop.remove_reader(handle)
            os.close(handle)
        os.waitpid(self._ours, 0)  # noqa: ASYNC222 - it has ended
        self._ours = 0


def _wanted(how: Intervals) -> Wanted:
    return Wanted(transmit_us=how.transmit_ms * 1000, receive_us=how.receive_ms * 1000, multiplier=how.multiplier)


def _state(report: Report) -> BfdState:
    return BfdState(
        up=report.state is State.UP,
        lost=report.lost,
        came_up=report.came_up,
        state=report.state.label,
        reason=_reason(report),
        since=report.since,
        interval_ms=report.interval_us / 1000,
        detection_ms=report.detection_us / 1000,
        losses=report.losses,
    )


def _reason(report: Report) -> str:
    if report.state is State.UP:
        return ""
    return "; ".join(part for part in (_course(report), report.problem) if part)


def _course(report: Report) -> str:
    """What has become of a session that is not up."""
    if report.remote_state is State.ADMIN_DOWN:
        return "BFD is switched off at the peer"
    if report.lost and report.diagnostic == Diagnostic.NEIGHBOR_SIGNALED_DOWN:
        return f"the path failed: the peer says so ({Diagnostic(report.remote_diagnostic).label})"
    if report.lost:
        return f"the path failed: {Diagnostic(report.diagnostic).label}"
    if report.came_up:
        return "the peer's BFD has started anew"
    return "the peer has not spoken BFD yet; its BGP session is not held back"

"""The agent's door: reads what the executables ask, has it answered, and takes a question back whose asker is gone.

    accept ── root? ── question: bounded in size and time ── its turn ── answer ──> status, output
                             └── the connection is gone: cancelled, and so undone ──┘

A runtime that gives up kills its executable, and the kernel closes the connection: that is all a cancellation takes.
STATUS and VERSION wait for no turn. When the agent ends nobody new is let in, calls under way have `DRAIN_S` to
finish, and those that remain are cancelled.

The framing is `cni.executable`'s. A peer that does not keep to it costs a line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import structlog

from cni.executable import ANSWER_BOUND, ENVIRONMENT_BOUND, MAGIC, STDIN_BOUND
from cni.metrics import Metrics
from cni.model import Answer, Question
from core.errors import MuslinError, Unsupported
from core.health import Health

SOCKET: Final = "cni.sock"
"""The socket's name in the agent's run directory."""

COMPONENT: Final = "server"

MOST_AT_ONCE: Final = 256
"""Questions in work; more wait."""

MOST_CONNECTIONS: Final = 384
"""Connections; who comes beyond waits in the kernel. Each takes two descriptors of the 1024 that are usual."""

QUESTION_S: Final = 10.0
"""How long an executable may take over its question: it has all of it before it connects."""

ANSWER_S: Final = 10.0
"""How long an executable may take to read its answer."""

DRAIN_S: Final = 4.0
"""How long calls under way may take to finish when the agent is told to end, in seconds."""

BREATHE_S: Final = 0.1
"""How long to wait when a connection could not be accepted."""

AT_ONCE: Final = frozenset({"STATUS", "VERSION"})
"""Commands that wait for no turn: they tell how the agent is."""

Answering: TypeAlias = Callable[[Question], Awaitable[Answer]]
"""Answers a question; when cancelled, takes back what it began. Its descriptor is closed when this returns."""

_HEAD: Final = struct.Struct(f">{len(MAGIC)}sII")
_ANSWER: Final = struct.Struct(f">{len(MAGIC)}sII")
_PEER: Final = struct.Struct("3i")  # pid, uid, gid
_DESCRIPTORS: Final = 4
"""Descriptors that are taken in to be closed, if more than one comes."""

log = structlog.get_logger()


class Refused(MuslinError):
    """What came over a connection is no question."""


class Server:
    """Answers on a UNIX socket. `health` hears how COMPONENT is, `metrics` how each call went."""

    def __init__(
        self, path: Path, answering: Answering, health: Health, metrics: Metrics, most_at_once: int = MOST_AT_ONCE
    ) -> None:
        self._path, self._answering, self._health, self._metrics = path, answering, health, metrics
        self._turns = asyncio.Semaphore(most_at_once)
        self._places = asyncio.Semaphore(MOST_CONNECTIONS)
        self._calls = 0
        self._idle = asyncio.Event()

    async def serve(self) -> None:
        """Answer until cancelled. Raises `Unsupported` when there can be no such socket."""
        async with asyncio.TaskGroup() as group:
            try:
                with _listening(self._path) as listener:
                    self._health.ok(COMPONENT)
                    await self._accept(listener, group)
            finally:
                await self._drain()

    async def _accept(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._places.release()
                self._health.degraded(COMPONENT, f"no connection can be accepted on {self._path}: {error.strerror}")
                await asyncio.sleep(BREATHE_S)
                continue
            self._health.ok(COMPONENT)
            self._calls += 1
            self._idle.clear()
            group.create_task(self._serve(connection), name="call")

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                if self._calls:
                    await self._idle.wait()

    async def _serve(self, connection: socket.socket) -> None:
        """One connection, from its first byte to its last; never raises but for our own cancellation."""
        descriptors: list[int] = []
        try:
            connection.setblocking(False)
            _require_root(connection)
            async with asyncio.timeout(QUESTION_S):
                question = await _question(connection, descriptors)
            answer = await self._answer(connection, question)
            if answer is not None:
                async with asyncio.timeout(ANSWER_S):
                    head = _ANSWER.pack(MAGIC, answer.status, len(answer.stdout))
                    await asyncio.get_running_loop().sock_sendall(connection, head + answer.stdout)
        except Refused as refused:
            self._metrics.refused()
            log.warning("cni.refused", why=str(refused))
        except (OSError, TimeoutError) as error:
            self._metrics.refused()
            log.warning("cni.peer_lost", why=str(error) or "it took too long over its question, or its answer")
        except Exception:  # of one connection; the others go on
            log.exception("cni.bug")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            connection.close()
            self._places.release()
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _answer(self, connection: socket.socket, question: Question) -> Answer | None:
        """The answer; None when nobody waits for it any more."""
        command, began = question.environment.get("CNI_COMMAND", ""), time.monotonic()
        self._metrics.began()
        code = "gone"
        try:
            with _cancelled_with(connection) as gone:
                turn = contextlib.nullcontext() if command in AT_ONCE else self._turns
                async with turn:
                    answer = await self._sound(question)
                code = _code(answer)
                return answer
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not gone or (task is not None and task.uncancel()):
                raise
            log.info("cni.asker_gone", command=command, after_s=round(time.monotonic() - began, 3))
            return None
        finally:
            self._metrics.ended(command, code, time.monotonic() - began)

    async def _sound(self, question: Question) -> Answer:
        """An answer in any case: a bug in answering is one, too."""
        try:
            answer = await self._answering(question)
        except Exception as bug:
            log.exception("cni.bug", command=question.environment.get("CNI_COMMAND", ""))
            return _bug(question, f"a bug in muslin's CNI agent: {bug!r}; its log says where")
        if len(answer.stdout) > ANSWER_BOUND:
            return _bug(question, f"the answer has {len(answer.stdout)} bytes, and may have {ANSWER_BOUND}")
        return answer


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket that listens at `path`, for root alone; what a dead agent left there is replaced in one step."""
    aside = path.with_name(f"{path.name}.new")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside.unlink(missing_ok=True)
            listener.bind(str(aside))
            aside.chmod(0o600)
            listener.listen(MOST_CONNECTIONS)
            ours = aside.stat().st_ino
            aside.replace(path)
        except OSError as error:
            why = error.strerror or str(error)
            raise Unsupported(f"cannot listen on {path}: {why}; run as root, or give another --run-dir") from error
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == ours:
                    path.unlink()


def _require_root(connection: socket.socket) -> None:
    pid, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if uid != 0:
        raise Refused(f"process {pid} of user {uid} may not ask: only root joins pods")


async def _question(connection: socket.socket, descriptors: list[int]) -> Question:
    """What the executable asks. Descriptors that come along are put in the list as soon as they are ours."""
    held, needed = bytearray(), _HEAD.size
    environment_size = -1
    while len(held) < needed:
        held += await _received(connection, descriptors, min(needed - len(held), 1 << 18))
        if environment_size < 0 and len(held) == _HEAD.size:
            magic, environment_size, stdin_size = _HEAD.unpack(held)
            if magic != MAGIC:
                with contextlib.suppress(OSError):  # an executable of another version knows by this that it is one
                    connection.send(_ANSWER.pack(MAGIC, 1, 0))
                raise Refused(f"a question begins with {MAGIC!r}, not {magic!r}: `muslin cni install` again may help")
            if environment_size > ENVIRONMENT_BOUND or stdin_size > STDIN_BOUND:
                raise Refused(f"a question of {environment_size} and {stdin_size} bytes is too long")
            needed += environment_size + stdin_size
    if len(descriptors) > 1:
        raise Refused(f"a question brings one descriptor, not {len(descriptors)}")
    words = os.fsdecode(bytes(held[_HEAD.size : _HEAD.size + environment_size])).split("\0")
    return Question(
        environment=dict(word.split("=", 1) for word in words if "=" in word),
        stdin=bytes(held[_HEAD.size + environment_size :]),
        netns=descriptors[0] if descriptors else None,
    )


async def _received(connection: socket.socket, descriptors: list[int], most: int) -> bytes:
    """The next bytes, at least one."""
    space = socket.CMSG_SPACE(_DESCRIPTORS * array("i").itemsize)
    while True:
        try:
            found, ancillary, flags, _ = connection.recvmsg(most, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await _readable(connection)
            continue
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                passed = array("i")
                passed.frombytes(data[: len(data) - len(data) % passed.itemsize])
                descriptors += passed
        if flags & socket.MSG_CTRUNC:
            raise Refused(
                "the descriptors that a question brought did not fit: too many came, or we have too many open"
            )
        if not found:
            raise Refused("the connection ended in the middle of a question")
        return found


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)


@contextlib.contextmanager
def _cancelled_with(connection: socket.socket) -> Iterator[list[bool]]:
    """Cancel the calling task when the connection goes; what it gives is not empty then."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    gone: list[bool] = []

    def look() -> None:
        try:
            connection.recv(1)  # after its question an executable says nothing; whoever does is not one
        except BlockingIOError:
            return
        except OSError:
            pass  # it is gone the hard way
        loop.remove_reader(connection)
        gone.append(True)
        task.cancel()

    loop.add_reader(connection, look)
    try:
        yield gone
    finally:
        loop.remove_reader(connection)


class _Said(msgspec.Struct):
    """What matters here of a document."""

    cniVersion: str = ""  # noqa: N815 - the specification's name
    code: int = 0


def _code(answer: Answer) -> str:
    """The code of an answer, as a metric's label."""
    return "0" if answer.status == 0 else str(_read(answer.stdout).code)


def _bug(question: Question, why: str) -> Answer:
    version = _read(question.stdin).cniVersion or "1.1.0"
    return Answer(status=1, stdout=msgspec.json.encode({"cniVersion": version, "code": 999, "msg": why}) + b"\n")


def _read(document: bytes) -> _Said:
    try:
        return msgspec.json.decode(document, type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Said()

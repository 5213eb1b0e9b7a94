"""ExaBGP as a child process: started, reloaded, watched, killed; its API reached through the bridge.

    ExaBGP ── pipes ── bridge.py ── UNIX socket ── here: lines to `on_line`, commands with their answers

- It never outlives us: the kernel kills it when we die (PR_SET_PDEATHSIG), so there is never a second speaker.
- It always dies by SIGKILL, never with a CEASE: peers keep our routes under graceful restart until the next one.
- It runs as root, for port 179 and to read its configuration wherever that lies, but with two capabilities only. A
  change of user would clear the parent-death signal.
- A command that is not answered in `answer_s` seconds, or a bridge that is gone, means its state is unknown: it is
  killed and started again. It stops for good when its answers are not read, so they always are.
- Sessions changed: it reads its file again, other sessions stay. Another port or listening address: a new process.
- Its sockets are watched over from here (bgp.sockets): the TTL of who calls, and peers that read nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import structlog

from bgp.exabgp import line
from bgp.exabgp.line import VERSION, Command, Load, Ping, encode, singly
from bgp.exabgp.plan import Plan, planned
from bgp.exabgp.sockets import Sockets
from bgp.model import Speaker
from core.addr import Address
from core.errors import Unavailable, Unsupported
from core.reconcile import Timing

ANSWER_S: Final = 7.0
PING_S: Final = 3.0
"""Together with a start these make less than 15 s: peers keep our routes meanwhile."""
SOCKETS_S: Final = 1.0
START_S: Final = 20.0
RETRY_S: Final = 2.0
LAST_WORDS_S: Final = 1.0
OPEN_S: Final = 10
"""How long a peer that takes our call may take to its OPEN, seconds. ExaBGP does nothing else for the peer meanwhile,
not even what a reload asks for."""
CHUNK: Final = 64 * 1024
"""How many bytes of what it says are taken in before others have their turn: some six thousand prefixes, in 15 ms."""
LONGEST_LINE: Final = 16 * 1024 * 1024
SOCKET_PATH_BOUND: Final = 107
UNASKED: Final = "advice"
"""Lines of its log that begin so are about a settings file that we do without."""

CAPABILITIES: Final = "-all,+net_bind_service,+dac_read_search"

log = structlog.get_logger()


class ExaBGP:
    """The child. `on_line` hears every line that is no answer; `on_start` and `on_loss` frame a process's life.

    `problem` is why none works as it should, a sentence or "". `restarts` counts its starts but the first, `ping_s` is
    how long its last sign of life took. `extended` starts it through `bgp.exabgp.entry`, if its
    version is the one known there; otherwise, and without, it gets its own slower commands.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        on_line: Callable[[Sequence[str]], None],
        on_start: Callable[[], None],
        on_loss: Callable[[], None],
        answer_s: float = ANSWER_S,
        extended: bool = True,
    ) -> None:
        self._run_dir = run_dir
        self._conf = run_dir / "exabgp.conf"
        self._socket = run_dir / "bridge.sock"
        self._on_line, self._on_start, self._on_loss = on_line, on_start, on_loss
        self._answer_s = answer_s
        self._extended = extended and version("exabgp") == VERSION
        self._program = (str(Path(__file__).with_name("entry.py")),) if self._extended else ("-m", "exabgp")
        self._plan: Plan | None = None
        self._running: Plan | None = None
        self._left: frozenset[Address] = frozenset()  # peers that were taken out, perhaps unknown to it
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._handle: int | None = None
        self._sockets: Sockets | None = None
        self._bridge: asyncio.StreamWriter | None = None
        self._bridged = asyncio.Event()
        self._answer: asyncio.Future[bool] | None = None
        self._last_words = self._unprotected = ""
        self.problem = ""
        self.restarts = 0
        self.ping_s: float | None = None

    @property
    def pid(self) -> int | None:
        """ExaBGP's process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def running(self) -> bool:
        """Whether commands can be given."""
        return self._bridge is not None

    def configure(self, speaker: Speaker) -> None:
        """State what it should run with; cheap."""
        before, self._plan = self._plan, planned(speaker, self._socket)
        self._left |= before.peers - self._plan.peers if before else frozenset()
        self._changed.set()

    async def send(self, command: Command) -> bool:
        """Give one command; whether ExaBGP accepted it. `Unavailable` when it is not there or does not answer."""
        async with self._lock:
            texts = [encode(command, extended=True)] if self._extended else [encode(each) for each in singly(command)]
            return all([await self._ask(text) for text in texts])

    async def _ask(self, text: str) -> bool:
        if self._bridge is None:
            raise Unavailable("ExaBGP is not running")
        self._answer = asyncio.get_running_loop().create_future()
        self._bridge.write(text.encode() + b"\n")
        try:
            async with asyncio.timeout(self._answer_s):
                return await self._answer
        except TimeoutError:
            log.error("exabgp.stuck", command=text[:100], seconds=self._answer_s)
            self._kill()
            raise Unavailable(f"ExaBGP did not answer for {self._answer_s:.0f} s and was killed") from None
        finally:
            self._answer = None

    async def run(self) -> None:
        """Keep one ExaBGP running until cancelled; then end it."""
        self._require()
        with _exclusive(self._run_dir):
            self._socket.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(self._serve, self._socket, limit=CHUNK)
            os.chmod(self._socket, 0o600)
            try:
                await self._keep_running()
            finally:
                self._kill()
                server.close()
                self._socket.unlink(missing_ok=True)

    def _require(self) -> None:
        if shutil.which("setpriv") is None:
            raise Unsupported("bgp needs setpriv to start ExaBGP; install Debian's util-linux")
        if find_spec("exabgp") is None:
            raise Unsupported("this Python has no ExaBGP, which muslin comes with; install muslin again")
        if len(os.fsencode(self._socket)) > SOCKET_PATH_BOUND:
            raise Unsupported(f"{self._socket} is too long for a UNIX socket; choose a shorter run directory")

    async def _keep_running(self) -> None:
        timing = Timing(retry_s=0.2, retry_max_s=10.0)
        failures = 0
        while True:
            while self._plan is None:
                await self._changed.wait()
                self._changed.clear()
            try:
                lasted = await self._one_life(self._plan)
            except* OSError as refused:
                lasted, self.problem = 0.0, f"ExaBGP cannot be started: {refused.exceptions[0]}"
                log.error("exabgp.not_started", why=self.problem)
            failures = 1 if lasted > timing.retry_max_s else failures + 1
            await asyncio.sleep(timing.backoff(failures))
            self.restarts += 1

    async def _one_life(self, plan: Plan) -> float:
        """From start to death; how long it lived, in seconds."""
        loop = asyncio.get_running_loop()
        born = loop.time()
        self._write(plan)
        self._left = frozenset()
        self._bridged.clear()
        process = self._process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--no-new-privs", f"--bounding-set={CAPABILITIES}"),
            *(sys.executable, "-P", *self._program, "server", str(self._conf)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._run_dir,
            env=self._environment(plan),
            limit=CHUNK,
        )
        try:
            self._handle = os.pidfd_open(process.pid)
        except OSError:  # it has ended already, or we can hold no more files
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        self._sockets = Sockets(process.pid, self._handle)
        log.info("exabgp.started", pid=process.pid)
        try:
            async with asyncio.TaskGroup() as group:
                relay = group.create_task(self._relay_log(process))
                tasks = [relay, *map(group.create_task, (self._watch(), self._watch_sockets(), self._follow_plan()))]
                await process.wait()
                await asyncio.wait([relay], timeout=LAST_WORDS_S)
                for task in tasks:
                    task.cancel()
        finally:
            self._kill()
            self._lose()
            os.close(self._handle)
            self._handle = None
            await process.wait()
            if not self._bridged.is_set():
                self.problem = self._unprotected or f"ExaBGP does not start: {self._last_words or process.returncode}"
            log.warning("exabgp.ended", pid=process.pid, code=process.returncode)
        return loop.time() - born

    def _write(self, plan: Plan) -> None:
        draft = self._conf.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # it may hold passwords
            file.write(plan.text)
        draft.rename(self._conf)
        self._running = plan

    def _environment(self, plan: Plan) -> dict[str, str]:
        *addresses, port = plan.listening
        settings = {
            "EXABGP_ENVFILE": str(self._run_dir / "no-exabgp.env"),
            "exabgp_daemon_user": "root",
            "exabgp_api_cli": "false",
            "exabgp_api_ack": "true",
            "exabgp_tcp_bind": " ".join(addresses),
            "exabgp_tcp_port": port,
            "exabgp_bgp_openwait": str(OPEN_S),
            "exabgp_log_destination": "stdout",
            "exabgp_log_level": "ERROR",
        }
        inherited = {key: value for key, value in os.environ.items() if not key.lower().startswith("exabgp")}
        return {**inherited, **settings}

    async def _relay_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(CHUNK):
            for said in data.decode(errors="replace").splitlines():
                if said.startswith(UNASKED):
                    continue
                log.info("exabgp.says", line=said)
                self._last_words = " ".join(said.split())

    async def _watch(self) -> None:
        """Kill it when the bridge does not come; then ask for a sign of life from time to time."""
        try:
            async with asyncio.timeout(START_S):
                await self._bridged.wait()
        except TimeoutError:
            log.error("exabgp.no_bridge", seconds=START_S)
            self._kill()
            return
        while True:
            await asyncio.sleep(PING_S)
            begun = time.monotonic()
            with contextlib.suppress(Unavailable):  # it was killed for not answering; its end is handled where it ends
                await self.send(Ping())
                self.ping_s = time.monotonic() - begun

    async def _watch_sockets(self) -> None:
        """Cut sessions whose peers do not read what we say, and say so."""
        await self._bridged.wait()
        unseen = ""
        while True:
            await asyncio.sleep(SOCKETS_S)
            assert self._sockets is not None
            assert self._running is not None
            try:
                stalled = self._sockets.cut_stalled(self._running.sessions, time.monotonic())
            except OSError as error:
                if str(error) != unseen:
                    log.warning("exabgp.sockets_unseen", why=str(error))
                unseen = str(error)
                continue
            unseen = ""
            for peer, seconds in stalled.items():
                self._on_line([line.stalled(peer, seconds)])

    def _protect(self, plan: Plan) -> bool:
        """Hold its sessions to their TTLs; without, it must not run."""
        if self._sockets is None or all(session.ttl_hops is None for session in plan.sessions):
            return True
        try:
            self._sockets.protect(plan.sessions)
        except OSError as error:
            self._unprotected = f"TTL security cannot be had of this kernel, so no session is opened: {error}"
            log.error("exabgp.unprotected", why=str(error))
            self._kill()
            return False
        self._unprotected = ""
        return True

    async def _follow_plan(self) -> None:
        await self._bridged.wait()
        while True:
            await self._changed.wait()
            self._changed.clear()
            wanted, running = self._plan, self._running
            assert wanted is not None
            assert running is not None
            if wanted.listening != running.listening:
                self._kill()
                return
            again, self._left = self._left & wanted.peers & running.peers, frozenset()
            try:
                if again:  # everybody else knows that these sessions ended; so must it
                    await self._load(wanted.without(again, self._socket))
                await self._load(wanted)
            except OSError as error:
                self._left |= again
                self.problem = f"ExaBGP works by its old sessions, for the new ones cannot be written: {error}"
                log.error("exabgp.not_configured", why=str(error))
                asyncio.get_running_loop().call_later(RETRY_S, self._changed.set)

    async def _load(self, wanted: Plan) -> None:
        assert self._running is not None
        if wanted.text == self._running.text or not self._protect(wanted):
            return
        self._write(wanted)
        with contextlib.suppress(Unavailable):  # it has ended, and the next one reads the file
            understood = await self.send(Load())
            self.problem = "" if understood else f"ExaBGP does not understand its new sessions: {self._last_words}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._bridge is not None or self.pid is None:
            writer.close()  # a second bridge: the first one's state is unknown, and its end kills ExaBGP
            return
        assert self._running is not None
        if not self._protect(self._running):
            writer.close()
            return
        self._bridge = writer
        self.problem = ""
        self._on_start()
        self._bridged.set()
        try:
            await self._read(reader)
        except OSError as error:
            log.warning("exabgp.bridge_lost", why=str(error))
        finally:
            self._kill()
            self._lose()
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        rest = b""
        while data := await reader.read(CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            heard: list[str] = []
            for said in (raw.decode(errors="replace") for raw in lines):
                if said in ("done", "error"):
                    self._answered(said == "done")
                else:
                    heard.append(said)
            self._on_line(heard)
            if len(rest) > LONGEST_LINE:
                raise OSError(f"a line of more than {LONGEST_LINE} bytes")
            await asyncio.sleep(0)  # to read what has been buffered does not wait, and leaves nobody a turn

    def _answered(self, ok: bool) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(ok)

    def _lose(self) -> None:
        if self._bridge is not None:
            self._bridge = None
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(Unavailable("ExaBGP ended"))
            self._on_loss()

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """By its handle: `Process.send_signal` would reap it if it has just ended, and asyncio would lose its code."""
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                signal.pidfd_send_signal(self._handle, number)


@contextlib.contextmanager
def _exclusive(run_dir: Path) -> Iterator[None]:
    """Hold the run directory: one agent a node."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(run_dir / "bgp.lock", "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"another muslin bgp runs in {run_dir}; one node has one") from None
        yield

"""The executable as a runtime runs it, and a door for it to knock at."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cni.install import executable_text
from cni.metrics import Metrics
from cni.server import MOST_AT_ONCE, Answering, Server
from core.health import Health

PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What a runtime heard."""

    status: int
    out: bytes

    @property
    def document(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True, slots=True)
class Executable:
    """An installed executable."""

    path: Path
    socket: Path

    @contextlib.asynccontextmanager
    async def begun(self, command: str, given: bytes = b"{}", **more: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A run of it, with its whole input on the way."""
        process = await asyncio.create_subprocess_exec(
            self.path,
            env={"PATH": os.environ["PATH"], "CNI_COMMAND": command, **more},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin
        process.stdin.write(given)
        process.stdin.close()
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def run(self, command: str, given: bytes = b"{}", **more: str) -> Heard:
        """A run from beginning to end."""
        async with asyncio.timeout(PATIENCE_S), self.begun(command, given, **more) as process:
            out, err = await process.communicate()
            assert not err, err
            assert process.returncode is not None
            return Heard(process.returncode, out)


def install(folder: Path, socket: Path | None = None) -> Executable:
    """An executable in `folder`, for an agent there."""
    made = Executable(folder / "muslin", socket or folder / "cni.sock")
    made.path.write_text(executable_text(made.socket))
    made.path.chmod(0o755)
    return made


@dataclass(frozen=True, slots=True)
class Door:
    """A server that runs."""

    health: Health
    metrics: Metrics

    def counted(self) -> dict[tuple[str, str], float]:
        """How many questions were answered, by verb and code."""
        found = {each.name: each for each in self.metrics.families()}
        return dict(found["muslin_cni_requests_total"].samples)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def door(socket: Path, answering: Answering, most_at_once: int = MOST_AT_ONCE) -> AsyncIterator[Door]:
    """A server at `socket` while the block lasts; it drains at the end."""
    made = Door(Health(["server"]), Metrics())
    server = asyncio.create_task(Server(socket, answering, made.health, made.metrics, most_at_once).serve())
    try:
        await until(lambda: made.health.ready or server.done())
        yield made
    finally:
        server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server


async def until(true: Callable[[], bool]) -> None:
    """Wait for what gives no event."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.002)


def descriptors(pid: int | str = "self") -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))

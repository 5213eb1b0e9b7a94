"""Processes that a lab starts, known by pid *and* start time, so that a reused pid is never taken for ours."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from linux import netns

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """A process; `started` is its start time in clock ticks since boot (proc(5), stat field 22)."""

    pid: int
    started: int

    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        return start_time(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none, or only a zombie.

    A zombie that is our own child is reaped on the way.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] not in "ZX":
        return int(fields[19])
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return None


def start(
    argv: Sequence[str],
    *,
    log: Path,
    namespace: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start a process on its own (a new session, output appended to `log`), in `namespace` when one is named."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            netns.command(namespace, *argv) if namespace else argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    child.returncode = 0  # we follow it by pid and start time; keep Popen from warning that it still runs
    return Process(child.pid, start_time(child.pid) or 0)


def stop(processes: Iterable[Process], *, patience_s: float = 3.0) -> None:
    """End processes: ask all, wait together up to `patience_s`, then kill what is left."""
    waiting = [process for process in processes if process.alive()]
    for number, limit in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        for process in waiting:
            process.signal(number)
        deadline = time.monotonic() + limit
        while (waiting := [process for process in waiting if process.alive()]) and time.monotonic() < deadline:
            time.sleep(POLL_S)


def known(pids: Iterable[int]) -> tuple[Process, ...]:
    """Those of `pids` that run now, with their start times."""
    return tuple(Process(pid, started) for pid in pids if (started := start_time(pid)) is not None)


def tree(process: Process) -> tuple[Process, ...]:
    """A process and all its descendants, itself first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (parent := _parent(int(entry))) is not None:
            children.setdefault(parent, []).append(int(entry))
    found = [process.pid]
    for pid in found:
        found.extend(children.get(pid, ()))
    return known(found) if process.alive() else ()


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None

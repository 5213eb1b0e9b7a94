"""A machine for container runtimes: a lab's node with processes, mounts and folders of its own.

    network namespace    the node's; felix, bgp and the CNI agent of the lab are there, too
    mount namespace      /etc, /opt and /var/lib over a scratch folder, so that runtimes find and write what is theirs
                         at their usual paths; /run is the scratch folder's; the host's own state is neither seen nor
                         touched
    process namespace    ends as one: nothing that a runtime leaves running outlives it

Only control groups are the host's: every container gets GROUP, or what is below it, for its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab import processes
from lab.processes import Process
from linux import netns

PATIENCE_S = 30.0
GROUP = f"muslin-{os.getpid()}"

OVERLAID = ("/etc", "/opt", "/var/lib")
BOUND = ("/var/lib/containerd", "/var/lib/containers")
"""Where runtimes lay overlays of their own, which no overlay can carry."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command came to."""

    status: int
    out: str
    err: str


@dataclass
class Machine:
    """A machine that is up. `init` is its first process, `root` its file system as others see it."""

    name: str
    network: str
    scratch: Path
    init: Process
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.init.pid}/root")

    def argv(self, *command: str) -> list[str]:
        """The argument vector that runs a command on the machine."""
        return ["nsenter", f"--target={self.init.pid}", "--mount", "--pid", "--net", "--wd=/", "--", *command]

    async def ask(self, *command: str, env: dict[str, str] | None = None) -> Said:
        """Run a command; what it came to."""
        child = await asyncio.create_subprocess_exec(
            *self.argv(*command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": "/root", **(env or {})},
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                out, err = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await child.communicate()
        assert child.returncode is not None
        return Said(child.returncode, out.decode(), err.decode())

    async def run(self, *command: str, env: dict[str, str] | None = None) -> str:
        """Run a command that must succeed; its output."""
        said = await self.ask(*command, env=env)
        assert said.status == 0, f"{self.name}$ {shlex.join(command)}: {said.err}{said.out}"
        return said.out

    def write(self, path: str, text: str | bytes) -> None:
        """Write a file of the machine."""
        file = self.root / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)

    def start(self, *command: str) -> Process:
        """Start a daemon, its output in a file of its name in the scratch folder; as the rest of the host sees it."""
        with (self.scratch / f"{command[0]}.log").open("ab") as log:
            entering = subprocess.Popen(self.argv(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.started.append(entering)
        return _child(entering)

    def reap(self) -> None:
        """Forget daemons that have ended."""
        self.started = [each for each in self.started if each.poll() is None]


def _child(parent: subprocess.Popen[bytes]) -> Process:
    (own,) = processes.known([parent.pid])
    for _ in range(500):
        family = processes.tree(own)
        if len(family) > 1:
            return family[1]
        assert parent.poll() is None, f"{parent.args} ended at once"
        with contextlib.suppress(subprocess.TimeoutExpired):
            parent.wait(0.01)
    raise AssertionError(f"{parent.args} begins nothing")


@contextlib.contextmanager
def machine(name: str, network: str, scratch: Path, run: Path) -> Iterator[Machine]:
    """A machine in the network namespace `network`; its /run/muslin is the folder `run`."""
    script = [
        "set -e",
        f"scratch={shlex.quote(str(scratch))}",
        f'mkdir -p "$scratch/run/muslin"; mount --bind {shlex.quote(str(run))} "$scratch/run/muslin"',
        *(_overlaid(each) for each in OVERLAID),
        *(f'mkdir -p "$scratch{each}" {each}; mount --bind "$scratch{each}" {each}' for each in BOUND),
        'mount --rbind "$scratch/run" /run',
        "mkdir -p /run/netns /opt/cni/bin /etc/cni/net.d",
        "rm -f /etc/cni/net.d/*",  # podman's package has a network there
        "echo ready",
        "sleep infinity & wait",  # a shell, because whoever is first takes in the orphans
    ]
    space = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation", "private"]
    argv = netns.command(netns.path(network), *space, "bash", "-c", "\n".join(script))
    scratch.mkdir(parents=True)
    with (
        (scratch / "machine.log").open("wb") as log,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log) as holder,
    ):
        try:
            assert holder.stdout
            assert holder.stdout.readline() == b"ready\n", (scratch / "machine.log").read_text()
            made = Machine(name, network, scratch, _child(holder))
            try:
                yield made
            finally:
                made.init.signal(signal.SIGKILL)
                for each in made.started:
                    each.wait(10)
        finally:
            holder.kill()


def _overlaid(path: str) -> str:
    upper, work = f'"$scratch/upper{path}"', f'"$scratch/work{path}"'
    options = f"lowerdir={path},upperdir={upper},workdir={work}"
    return f"mkdir -p {upper} {work}; mount -t overlay -o {options} overlay {path}"


def remove_groups() -> None:
    """Remove the control groups of containers that have just been ended; version 1 has a tree for each controller."""
    home = Path("/sys/fs/cgroup")
    deadline = time.monotonic() + PATIENCE_S
    while tops := [each for each in (home / GROUP, *home.glob(f"*/{GROUP}")) if each.exists()]:
        for folder, _, _ in (found for top in tops for found in os.walk(top, topdown=False)):
            with contextlib.suppress(OSError):  # one of its processes is on its way out
                os.rmdir(folder)
        assert time.monotonic() < deadline, f"control groups are in use: {tops}"
        time.sleep(0.02)


async def until(true: object, what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for what gives no event, within bounds; `true` is a function, or a coroutine function."""
    assert callable(true)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            while True:
                found = true()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.05)
    raise AssertionError(f"waited {patience_s:g} s for {what}")


@contextlib.asynccontextmanager
async def stopped(process: Process) -> AsyncIterator[None]:
    """The process stands still for the length of the block."""
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)

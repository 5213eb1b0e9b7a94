"""The User-Mode Linux kernel: what it gives back, what it sees, how it ends; and the cache around its build."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import MuslinError
from lab import uml
from lab.processes import start_time

KERNEL = pytest.mark.uml
pytestmark = pytest.mark.skipif(not uml.needed(), reason="this kernel has IP-in-IP, so none is built to stand in")


@KERNEL
async def test_a_command_runs_with_the_projects_own_python_and_its_exit_code_comes_out(tmp_path: Path) -> None:
    lines: list[str] = []
    program = (
        "import os, pathlib, core.names, sys; "
        "pathlib.Path(os.environ['MUSLIN_SCRATCH'], 'result').write_text(os.uname().release); "
        "print('one'); print('two', file=sys.stderr); sys.exit(42)"
    )
    code = await uml.run([sys.executable, "-c", program], scratch=tmp_path, on_line=lines.append, timeout=60)
    assert code == 42
    assert [line for line in lines if line in {"one", "two"}] == ["one", "two"]
    assert lines[-1] in {"one", "two"}, "what the machine says as it ends is not the command's output"
    assert (tmp_path / "result").read_text() != os.uname().release


@KERNEL
async def test_it_has_what_felix_needs_and_ip_in_ip() -> None:
    script = (
        "set -e; ip link add name try type ipip remote 192.0.2.1 local 192.0.2.2; ip netns add n;"
        "ip link add name a type veth peer name b netns n; ip link add name br type bridge;"
        "nft 'table inet t { map m { type ipv4_addr : verdict; flags interval; counter; };"
        " chain c { type filter hook forward priority 0; ct state established accept; ip saddr vmap @m; }; }';"
        "mount -t tmpfs x /mnt; test -w /run; test -c /dev/net/tun"
    )
    lines: list[str] = []
    assert await uml.run(["sh", "-c", script], on_line=lines.append, timeout=60) == 0, lines


@KERNEL
async def test_lines_come_as_they_are_written_and_a_late_machine_is_killed() -> None:
    began, seen = time.monotonic(), []
    with pytest.raises(MuslinError, match="killed after 4 s"):
        await uml.run(["sh", "-c", "echo early; sleep 60"], on_line=lambda _: seen.append(time.monotonic()), timeout=4)
    assert seen
    assert seen[0] - began < 3.9
    assert not machines()


@KERNEL
async def test_a_cancelled_run_leaves_no_machine(wait: Callable[[Callable[[], object]], None]) -> None:
    begun = asyncio.Event()
    task = asyncio.create_task(uml.run(["sh", "-c", "echo up; sleep 60"], on_line=lambda _: begun.set(), timeout=60))
    await asyncio.wait_for(begun.wait(), 30)
    assert machines()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not machines()


def machines() -> list[str]:
    """The command lines of machines that descend from this process."""
    shown = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True, check=False
    )
    return [line for line in shown.stdout.splitlines() if "rootfstype=hostfs" in line]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and stand-ins for tar and make on PATH that take a moment and leave a kernel."""
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {
        "tar": 'while [ "$1" != --directory ]; do shift; done; mkdir "$2/tree"',
        "make": f'echo "  CC  x.o"; case "$*" in *-j*) echo run >> {shlex.quote(str(tmp_path))}/builds;'
        " sleep 0.7; echo kernel > linux;; esac",
        "strip": "true",
    }
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


async def test_two_builds_at_once_build_once(cache: Path) -> None:
    said: list[str] = []
    first, second = await asyncio.gather(*(asyncio.to_thread(uml.build, said.append) for _ in range(2)))
    assert first == second
    assert first.read_text() == "kernel\n"
    assert (cache / "builds").read_text() == "run\n"
    assert any("waiting for it" in line for line in said)
    assert uml.build(said.append) == first
    assert (cache / "builds").read_text() == "run\n"


def test_a_build_that_fails_or_was_cut_short_leaves_nothing_that_looks_whole(cache: Path) -> None:
    (cache / "tools" / "make").write_text("#!/bin/sh\necho no rule; exit 2\n")
    with pytest.raises(MuslinError, match=r"(?s)make ARCH=um defconfig.*no rule.*build\.log"):
        uml.build(lambda _: None)
    assert not uml.kernel().exists()
    (uml.kernel().parent / "build-left-by-a-crash").mkdir()
    (cache / "tools" / "make").write_text("#!/bin/sh\necho kernel > linux\n")
    assert uml.build(lambda _: None).read_text() == "kernel\n"
    assert not list(uml.kernel().parent.glob("build-*"))


async def test_a_run_that_is_cancelled_while_it_builds_ends_the_build(
    cache: Path, wait: Callable[[Callable[[], object]], None]
) -> None:
    (cache / "tools" / "make").write_text(f"#!/bin/sh\necho $$ > {shlex.quote(str(cache))}/pid; exec sleep 60\n")
    began = asyncio.Event()

    def line(_: str) -> None:
        began.set()

    task = asyncio.create_task(uml.run(["true"], on_line=line))
    await asyncio.wait_for(began.wait(), 20)
    await asyncio.to_thread(wait, (cache / "pid").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pid = int((cache / "pid").read_text())
    await asyncio.to_thread(wait, lambda: start_time(pid) is None)
    assert not list(uml.kernel().parent.glob("build-*"))


def test_another_configuration_is_another_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = uml.kernel()
    (tmp_path / "config").write_text("CONFIG_NET=y\n")
    monkeypatch.setattr(uml, "CONFIG", tmp_path / "config")
    assert uml.kernel() != before

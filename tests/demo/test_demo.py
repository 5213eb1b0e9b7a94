"""`make demo` as a user sees it: it ends well, leaves nothing behind, and can be interrupted anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
MARK = f"MUSLIN_DEMO_OF=test-{os.getpid()}"
"""In the environment of our demos, and so of all they start: other tests, too, start User-Mode Linux machines."""


def ours(pid: str) -> bool:
    """Whether a process, there or just gone, descends from one of our demos."""
    with contextlib.suppress(OSError):
        return MARK.encode() in Path("/proc", pid, "environ").read_bytes().split(b"\0")
    return False


def traces() -> dict[str, object]:
    """All that a demo might leave on this machine."""
    shown = subprocess.run(["ps", "-eo", "pid=,args="], check=True, capture_output=True, text=True).stdout
    processes = [line.split(maxsplit=1) for line in shown.splitlines()]
    return {
        "namespaces": sorted(path.name for path in Path("/run/netns").glob("mus.demo-*")),
        "labs": sorted(path.name for path in Path("/run/muslin/lab").glob("demo-*")),
        "processes": [args for pid, args in processes if "/demo-racks" in args or "/demo-ipip" in args or ours(pid)],
        "tables": subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout,
        "routes": subprocess.run(["ip", "route"], check=True, capture_output=True, text=True).stdout,
        "links": subprocess.run(["ip", "-br", "link"], check=True, capture_output=True, text=True).stdout,
    }


async def lines(child: asyncio.subprocess.Process) -> AsyncIterator[str]:
    """What the demo says, a line at a time."""
    assert child.stdout is not None
    async for raw in child.stdout:
        yield raw.decode().rstrip()


async def run_demo(interrupt_at: str = "") -> tuple[int, list[str]]:
    """Run the demo; Ctrl-C, to all its foreground, at the first line that holds `interrupt_at`. Exit code and lines."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "lab.demo",
        cwd=HOUSE,
        env=os.environ | dict([MARK.split("=")]),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    said: list[str] = []
    try:
        async for line in lines(child):
            said.append(line)
            if interrupt_at and interrupt_at in line:
                os.killpg(child.pid, signal.SIGINT)
                interrupt_at = ""
        return await child.wait(), said
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
            await child.wait()


@pytest.mark.lab
@pytest.mark.timeout(400)
async def test_every_check_holds_and_nothing_is_left() -> None:
    before = traces()
    code, said = await run_demo()
    text = "\n".join(said)
    assert code == 0, text
    passed = [line for line in said if line.startswith("   ok   ")]
    assert not [line for line in said if "FAIL" in line], text
    assert said[-1] == f"demo: {len(passed)} checks passed", text
    steps = [int(found[1]) for line in said if (found := re.match(r"(\d)\. ", line))]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert traces() == before


@pytest.mark.lab
@pytest.mark.parametrize("point", ["lab demo-racks:", "manifests applied", "5. ipipMode"])
@pytest.mark.timeout(200)
async def test_an_interrupted_one_leaves_nothing(point: str) -> None:
    before = traces()
    code, said = await run_demo(interrupt_at=point)
    assert code == 130, "\n".join(said)
    assert traces() == before

"""Child processes kept alive, and how the command itself ends: real processes, real signals."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from cli.children import kept, muslin
from core.reconcile import Timing

HOUSE = Path(__file__).parents[2]
QUICK = Timing(retry_s=0.01, retry_max_s=0.05)


def lives(record: Path, count: int) -> list[int]:
    """The pids that children wrote down, once there are `count`."""
    until(lambda: record.exists() and len(record.read_text().split()) >= count)
    return [int(word) for word in record.read_text().split()]


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that gives no event, 15 s at most."""
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_a_child_that_dies_is_started_again_and_ends_with_us(tmp_path: Path) -> None:
    record = tmp_path / "pids"
    argv = ["bash", "-c", f"echo $$ >> {record}; exec sleep 300"]
    with structlog.testing.capture_logs() as lines:
        keeper = asyncio.create_task(kept("sleeper", argv, QUICK)())
        (first,) = await asyncio.to_thread(lives, record, 1)
        os.kill(first, signal.SIGKILL)
        _, second = await asyncio.to_thread(lives, record, 2)
        keeper.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeper
    assert not alive(first)
    assert not alive(second)
    ended = [line for line in lines if line["event"] == "child.ended"]
    assert [(line["child"], line["code"]) for line in ended] == [("sleeper", -signal.SIGKILL)]


def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    record = tmp_path / "pids"
    bound = [*muslin()[:3], "bash", "-c", f"echo $$ >> {record}; exec sleep 300"]
    program = f"import subprocess; subprocess.run({bound!r})"
    parent = subprocess.Popen([sys.executable, "-c", program])
    (child,) = lives(record, 1)
    parent.kill()
    parent.wait()
    until(lambda: not alive(child))


def test_ctrl_c_is_quiet_and_says_130(datastore: str) -> None:
    argv = [sys.executable, "-m", "cli", "status", "--watch", "--datastore", datastore]
    with subprocess.Popen(argv, cwd=HOUSE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("NODE")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(15) == 130
        assert watching.stderr is not None
        assert watching.stderr.read() == ""


def test_a_bad_backend_and_a_bad_address_are_refused_in_a_sentence(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "cli", "datastore", "--backend", "mysql:here", "--listen", f"unix:{tmp_path}/s"]
    done = subprocess.run(argv, cwd=HOUSE, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "no such backend; use sqlite:PATH or etcd:HOST:PORT" in done.stderr
    assert "Traceback" not in done.stderr

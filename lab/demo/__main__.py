"""`make demo` (`python -m lab.demo`): every step, here or in a User-Mode Linux kernel; leaves nothing behind.

Exits 0 only if every check held. Ctrl-C at any point takes everything down and exits 130.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from core.errors import MuslinError
from lab import uml, underlay
from lab.demo import checks as seen
from lab.demo import racks, tunnel
from lab.demo.checks import Checks


async def _tunnel_steps(checks: Checks) -> None:
    """Steps 5 and 6, where there is IP-in-IP."""
    if not await asyncio.to_thread(uml.needed):
        await tunnel.run(checks)
        return
    checks.progress("this kernel has no ipip: steps 5 and 6 run in a User-Mode Linux kernel that has")
    with tempfile.TemporaryDirectory(prefix="muslin-demo-", dir=_scratch_home()) as scratch:
        env = {"MUSLIN_COLOUR": "1"} if sys.stdout.isatty() else {}
        argv = [sys.executable, "-m", "lab.demo.tunnel"]
        code = await uml.run(argv, scratch=Path(scratch), timeout=240, on_line=checks.say, env=env)
        found = Path(scratch) / "checks.json"
        if not found.exists():
            raise MuslinError(f"steps 5 and 6 ended with exit code {code} and no word of what they checked")
        checks.done += seen.read(found)


def _scratch_home() -> Path:
    home = uml.home() / "runs"
    home.mkdir(parents=True, exist_ok=True)
    return home


async def _demo(checks: Checks) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    underlay.require_root()
    async with racks.cluster(checks) as lab:
        for step in (racks.peering, racks.everyone, racks.outside, racks.policy):
            await step(lab, checks)
        await _tunnel_steps(checks)
        for step in (racks.killed, racks.said):
            await step(lab, checks)


def main() -> int:
    """Run it; the exit code."""
    checks = Checks(lambda text: print(text, flush=True), colour=sys.stdout.isatty())  # noqa: T201
    try:
        asyncio.run(_demo(checks))
    except MuslinError as problem:
        checks.check("the demo runs to its end", held=False, seen=problem)
    except (asyncio.CancelledError, KeyboardInterrupt):
        checks.say("demo: interrupted; everything it made is gone")
        return 130
    if checks.failed:
        checks.say(f"demo: {len(checks.failed)} of {len(checks.done)} checks failed")
        return 1
    checks.say(f"demo: {len(checks.done)} checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

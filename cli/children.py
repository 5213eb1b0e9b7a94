"""Keep a child process alive: start it, wait, start it again with backoff; end it when we are told to end.

A child has a session of its own, so that Ctrl-C reaches us alone and we end children in order; and it is told
by the kernel (`setpriv --pdeathsig`) when we die without a word, so that no agent is left beside its successor.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Final

import structlog

from core.errors import Unsupported
from core.reconcile import Timing
from core.supervise import CANNOT_RUN, Service

STEADY_S: Final = 30.0
"""A child that has lived this long has not failed in a row."""

END_S: Final = 10.0
"""How long a child may take to end before it is killed."""

TIMING: Final = Timing(retry_s=0.5, retry_max_s=15.0)

log = structlog.get_logger()


def muslin(*arguments: str) -> list[str]:
    """The argument vector of this very `muslin`, bound to our life."""
    return ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "cli", *arguments]


def kept(name: str, argv: Sequence[str], timing: Timing = TIMING) -> Service:
    """A service that keeps `argv` running. Raises `Unsupported` when it ends because it cannot run on this machine."""

    async def keep() -> None:
        failures = 0
        while True:
            began = time.monotonic()
            code = await _live(name, argv)
            if code == CANNOT_RUN:  # it has said why itself
                raise Unsupported(
                    f"{name} cannot run on this machine, for the reason given above, and is not tried again"
                )
            failures = 1 if time.monotonic() - began > STEADY_S else failures + 1
            wait = timing.backoff(failures)
            log.warning("child.ended", child=name, code=code, restart_in_s=round(wait, 1))
            await asyncio.sleep(wait)

    return keep


async def _live(name: str, argv: Sequence[str]) -> int:
    """One life of a child; its exit code. Ends it when cancelled."""
    child = await asyncio.create_subprocess_exec(*argv, start_new_session=True)
    log.info("child.started", child=name, pid=child.pid)
    try:
        return await child.wait()
    except asyncio.CancelledError:
        if child.returncode is None:
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), END_S)
        except TimeoutError:
            log.warning("child.killed", child=name, pid=child.pid, after_s=END_S)
            child.kill()
            await child.wait()
        raise

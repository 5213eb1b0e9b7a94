"""Run the services of one process together, and end them in order.

    start, in the order given      a ── b ── c          all in one TaskGroup
    SIGTERM, SIGINT, or one ends   c, then b, then a    each cancelled and awaited before the next

A service is a coroutine function that works until it is cancelled. One that returns early or raises ends the
process: half an agent is worse than one that its parent restarts. What this machine lacks (`Unsupported`) no restart
brings, so it has an exit code of its own. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeAlias

import structlog

from core.errors import Unsupported, on_purpose

Service: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

CANNOT_RUN: Final = os.EX_CONFIG
"""Exit code (78) of a process that this machine cannot run: do not start it again before that has changed."""

SWITCH_S: Final = 0.0005
"""How long one thread may work in Python while others wait, Python's event loops among them. As it comes it is ten
times that, which a pod then waits for, again and again, while a worker thread goes through what has changed."""

log = structlog.get_logger()


def main(services: Mapping[str, Service], *, grace_s: float = 5.0) -> int:
    """`run` as the whole of a process; its exit code. What the machine lacks is one sentence on stderr."""
    sys.setswitchinterval(SWITCH_S)
    try:
        return asyncio.run(run(services, grace_s=grace_s))
    except Unsupported as lack:
        sys.stderr.write(f"{lack}\n")
        return CANNOT_RUN


async def run(services: Mapping[str, Service], *, grace_s: float = 5.0) -> int:
    """Run `services` (by name, started in order) until a signal or until one ends; the process's exit code.

    0 after a signal, 1 when a service failed or ended by itself; raises `Unsupported`, once all have ended, when the
    machine lacks what one needs. A service that takes longer than `grace_s`
    seconds to end is named in the log, and the next one is asked meanwhile.
    """
    stop = asyncio.Event()
    failed: list[str] = []
    lacking: list[str] = []

    async def guarded(name: str, service: Service) -> None:
        try:
            await service()
            log.error("service.ended", service=name)
        except Exception as error:
            reasons = on_purpose(error)
            for reason in reasons:
                if isinstance(reason, Unsupported):
                    lacking.append(str(reason))
                else:
                    log.error("service.failed", service=name, why=str(reason))
            if not reasons:
                log.exception("service.crashed", service=name)
        failed.append(name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(guarded(name, service), name=name) for name, service in services.items()]
            await stop.wait()
            _forget_signals(loop)  # from here on a signal has its default effect
            for task in reversed(tasks):
                await _end(task, grace_s)
    finally:
        _forget_signals(loop)
    if lacking:
        raise Unsupported("\n".join(dict.fromkeys(lacking)))
    return 1 if failed else 0


async def _end(task: asyncio.Task[None], grace_s: float) -> None:
    task.cancel()
    _, late = await asyncio.wait([task], timeout=grace_s)
    if late:
        log.warning("service.slow_to_end", service=task.get_name(), grace_s=grace_s)


def _forget_signals(loop: asyncio.AbstractEventLoop) -> None:
    for number in SIGNALS:
        loop.remove_signal_handler(number)

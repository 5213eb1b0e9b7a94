"""An agent in a process of its own: snapshots come in as file names on stdin, statuses go out as JSON lines. As from
`datastore.follow`, what vanishes in masses is held.

Run as `python bgp_agent_process.py NODE RUN_DIR SETTLE_S`; each file holds a pickled list of resources.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path

import msgspec
import structlog

from bgp.agent import Agent, Inputs
from core.breaker import hold
from core.latest import Latest
from core.resources.status import SpeakerState
from core.snapshot import Snapshot


async def main(node: str, run_dir: str, settle_s: str) -> None:
    snapshots: Latest[Snapshot] = Latest()

    async def report(state: SpeakerState) -> None:
        print(msgspec.json.encode(state).decode(), flush=True)

    async def read() -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        revision, accepted = 0, Snapshot()
        while line := await reader.readline():
            revision += 1
            resources = pickle.loads(Path(line.decode().strip()).read_bytes())  # noqa: ASYNC240 - a test's scratch file
            accepted = hold(accepted, Snapshot().apply(revision, [(each.key, each) for each in resources]), node)
            snapshots.put(accepted)
        raise SystemExit

    inputs = Inputs(
        node=node,
        run_dir=Path(run_dir),
        snapshots=snapshots,
        report=report,
        settle_s=float(settle_s),
        report_s=0.1,  # tests wait for what it says
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        group.create_task(Agent(inputs).run())


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(*sys.argv[1:]))

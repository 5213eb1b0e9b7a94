"""The helper that ExaBGP starts: carries bytes between its pipes and our UNIX socket, and never stops reading.

ExaBGP writes to its helper without ever waiting for room, and stands still, sessions and all, when the pipe is
full. So what it says is always taken, up to a bound; beyond it, or when either side closes, the bridge ends, which
the agent reads as "state unknown". Run as `python -S -E bridge.py SOCKET`: stdlib only, 40 ms to start.
"""

from __future__ import annotations

import os
import select
import socket
import sys

BOUND = 64 * 1024 * 1024
CHUNK = 256 * 1024


def carry(pairs: dict[int, int]) -> None:
    """Copy from each descriptor to its partner until one ends or `BOUND` bytes wait."""
    waiting = {sink: bytearray() for sink in pairs.values()}
    for descriptor in {*pairs, *waiting}:
        os.set_blocking(descriptor, False)
    while all(len(data) <= BOUND for data in waiting.values()):
        sinks = [sink for sink, data in waiting.items() if data]
        readable, writable, _ = select.select(list(pairs), sinks, [])
        for source in readable:
            data = os.read(source, CHUNK)
            if not data:
                return
            waiting[pairs[source]] += data
        for sink in writable:
            del waiting[sink][: os.write(sink, waiting[sink][:CHUNK])]


if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as agent:
        try:
            agent.connect(sys.argv[1])
            carry({0: agent.fileno(), agent.fileno(): 1})
        except OSError as error:
            sys.exit(f"bridge: {error}")

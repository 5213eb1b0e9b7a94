"""Listening to a kernel that should have nothing to say: `ip monitor route` and `nft monitor` in one namespace.

Silence proves nothing unless the listener is heard to listen, so `heard` first makes a change of its own (a route and
a table that belong to nobody) and waits until both monitors have reported it.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Self

from core.errors import MuslinError
from lab.cluster import Cluster

CANARY_ROUTE: Final = "203.0.113.77"
CANARY_TABLE: Final = "canary_of_the_demo"
PATIENCE_S: Final = 5.0


class Silence:
    """Both monitors of one node, from now until the block ends."""

    def __init__(self, lab: Cluster, node: str) -> None:
        self._lab, self._node = lab, node
        self._directory = tempfile.TemporaryDirectory(prefix="muslin-silence-")
        self._logs = [Path(self._directory.name, name) for name in ("route", "nft")]
        self._monitors = []
        for log, argv in zip(self._logs, (["ip", "monitor", "route"], ["nft", "monitor"]), strict=True):
            with log.open("wb") as out:
                self._monitors.append(subprocess.Popen(lab.command(node, argv), stdout=out, stderr=out))
        self._until_canary("before")
        self._forget = [len(log.read_text()) for log in self._logs]

    def heard(self) -> list[str]:
        """Every line that either monitor reported since the beginning, the canary's left out."""
        self._until_canary("after")
        lines = [
            line
            for log, skip in zip(self._logs, self._forget, strict=True)
            for line in log.read_text()[skip:].splitlines()
        ]
        noise = (CANARY_ROUTE, CANARY_TABLE, "# new generation")
        return [line for line in lines if line.strip() and not any(word in line for word in noise)]

    def _until_canary(self, word: str) -> None:
        table = f"{CANARY_TABLE}_{word}"
        deadline = time.monotonic() + PATIENCE_S
        before = [len(log.read_text()) for log in self._logs]
        while time.monotonic() < deadline:
            self._run("ip", "route", "add", "blackhole", CANARY_ROUTE)
            self._run("ip", "route", "del", "blackhole", CANARY_ROUTE)
            self._run("nft", "add", "table", "inet", table)
            self._run("nft", "delete", "table", "inet", table)
            time.sleep(0.05)
            texts = [log.read_text()[skip:] for log, skip in zip(self._logs, before, strict=True)]
            if f"Deleted blackhole {CANARY_ROUTE}" in texts[0] and f"delete table inet {table}" in texts[1]:
                return
        raise MuslinError("ip monitor or nft monitor did not report a change that was made: is either missing?")

    def _run(self, *argv: str) -> None:
        subprocess.run(self._lab.command(self._node, argv), check=True, capture_output=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for monitor in self._monitors:
            monitor.kill()
            monitor.wait()
        self._directory.cleanup()

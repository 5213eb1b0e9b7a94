"""A datastore whose process can be stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOUSE = Path(__file__).parents[2]


@contextmanager
def the_datastore(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a server over SQLite, and its process."""
    address = f"unix:{folder}/store.sock"
    argv = [sys.executable, "-m", "cli", "datastore", "--backend", f"sqlite:{folder}/db", "--listen", address]
    said = folder / "store.log"
    with said.open("wb") as log, subprocess.Popen(argv, cwd=HOUSE, stderr=log) as server:
        try:
            deadline = time.monotonic() + 30
            while b"datastore.listening" not in said.read_bytes():
                assert server.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.02)
            yield address, server
        finally:
            server.send_signal(signal.SIGCONT)
            server.terminate()
            assert server.wait(10) == 0

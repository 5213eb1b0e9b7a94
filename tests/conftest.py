"""What several rooms' tests stand on."""

import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]


@pytest.fixture
def datastore() -> Iterator[str]:
    """The address of an empty datastore: a real server process of its own, over SQLite, on a UNIX socket."""
    with tempfile.TemporaryDirectory(prefix="muslin-") as folder:
        address = f"unix:{folder}/datastore.sock"
        argv = [sys.executable, "-m", "cli", "datastore", "--backend", f"sqlite:{folder}/db", "--listen", address]
        with subprocess.Popen(argv, cwd=HOUSE, stderr=subprocess.PIPE, text=True) as server:
            try:
                assert server.stderr is not None
                with selectors.DefaultSelector() as ready:
                    ready.register(server.stderr, selectors.EVENT_READ)
                    assert ready.select(timeout=20), "the datastore said nothing for 20 s"
                line = server.stderr.readline()
                assert "datastore.listening" in line, line + server.stderr.read()
                yield address
            finally:
                server.send_signal(signal.SIGTERM)
                assert server.wait(10) == 0

"""Threads that read objects for the first time, at once: agents do as they start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

AT_ONCE = """
import sys
import threading

import msgspec

from core.resources import CLASSES

THREADS = 4


def read() -> None:
    together.wait()
    for cls in CLASSES:
        try:
            msgspec.json.decode(b'{"metadata": {"name": "x"}, "spec": {}}', type=cls)
        except msgspec.ValidationError:
            pass


sys.setswitchinterval(1e-6)
together = threading.Barrier(THREADS)
threads = [threading.Thread(target=read) for _ in range(THREADS)]
for each in threads:
    each.start()
for each in threads:
    each.join()
"""


def test_threads_may_read_any_kind_for_the_first_time() -> None:
    done = subprocess.run([sys.executable, "-c", AT_ONCE], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, "a signal ended it"

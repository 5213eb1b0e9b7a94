"""Links, addresses and routes as an administrator writes them: many lines of `ip`, one process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from core.errors import MuslinError


def batch(lines: Iterable[str], namespace: str = "") -> None:
    """Run `ip` command lines in one process, within the named `namespace` ("": ours); stops at the first that fails."""
    text = "".join(f"{line}\n" for line in lines)
    if not text:
        return
    argv = ["ip", *(["-n", namespace] if namespace else []), "-batch", "-"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        where = f" in {namespace}" if namespace else ""
        raise MuslinError(f"ip{where} failed: {done.stderr.strip()}\n{text}")

"""Where cases that need IP-in-IP run: in this host's own kernel if it has it, else in a User-Mode Linux kernel."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from lab import uml
from linux import rights


async def passed(cases: Path) -> str:
    """Run a file of cases to its good end; pytest's closing line."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    lines: list[str] = []
    if rights.has_ipip():
        child = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, cwd=uml.HOUSE)
        output, _ = await child.communicate()
        lines, code = output.decode().splitlines(), child.returncode
    else:
        code = await uml.run(argv, on_line=lines.append, timeout=100)
    assert code == 0, "\n".join(lines)
    return next(line for line in reversed(lines) if "passed" in line)

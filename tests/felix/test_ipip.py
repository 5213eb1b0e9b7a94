"""The tunnel needs a kernel with ipip: this host's own if it has it, else the project's User-Mode Linux kernel."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from lab import uml
from linux import rights

CASES = Path(__file__).with_name("ipip_cases.py")


@pytest.mark.uml
async def test_the_tunnel_on_a_kernel_that_has_ipip() -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    lines: list[str] = []
    if rights.has_ipip():
        child = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, cwd=CASES.parents[2])
        output, _ = await child.communicate()
        lines, code = output.decode().splitlines(), child.returncode
    else:
        code = await uml.run(argv, on_line=lines.append, timeout=100)
    assert code == 0, "\n".join(lines)
    assert any("2 passed" in line for line in lines)

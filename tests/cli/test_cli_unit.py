"""The systemd unit: its command line is one that `muslin` takes, and what must outlive a restart does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Muslin = Callable[[str], Any]
UNIT = Path(__file__).parents[2] / "deploy" / "muslin-node.service"
PROGRAM = "/usr/local/bin/muslin"


def settings() -> dict[str, str]:
    return dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if re.match(r"\w+=", line))


def test_its_options_are_muslins(muslin: Muslin) -> None:
    program, command, *words = settings()["ExecStart"].split()
    assert program == PROGRAM
    known = re.findall(r"--[a-z-]+", muslin(f"{command} --help").out)
    assert {word for word in words if word.startswith("--")} <= set(known)


def test_what_must_outlive_a_restart_does() -> None:
    found = settings()
    assert found["KillMode"] == "process"  # docs/bfd.md: BFD's process stays
    assert found["RuntimeDirectoryPreserve"] == "yes"
    assert found["RestartPreventExitStatus"] == "78"

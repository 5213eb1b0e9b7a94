"""What the agent of a node is, is asked by the executable that a runtime runs, and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LEAK_GRACE_S: Final = 900.0
"""Calico's `leakGracePeriod`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How this node's CNI agent runs. `node` is the name of its Node object.

    `leak_grace_s` is how long (seconds) an address must have been without a user before it is taken back.
    """

    node: str
    datastore: str
    run_dir: Path
    leak_grace_s: float = LEAK_GRACE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One run of the executable: its CNI_* environment and standard input as they were.

    `netns` is a descriptor of the namespace that CNI_NETNS names, opened by the executable; None when it is not there.
    Whoever answers does not close it.
    """

    environment: Mapping[str, str]
    stdin: bytes
    netns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the executable prints and its exit status."""

    status: int
    stdout: bytes

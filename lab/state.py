"""What a lab leaves in the file system: one directory, and in it a record of all it made.

The record is written before anything is made and after each process is started, so that a lab can be taken down by
another process, after a crash, and without its topology file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec

from core.addr import Address
from core.errors import MuslinError
from core.resources.base import Base
from lab.processes import Process
from lab.topology import NAME

HOME: Final = Path("/run/muslin/lab")
_FILE: Final = "lab.json"


class Started(Base, frozen=True, kw_only=True):
    """A process of the lab; see `lab.processes.Process`."""

    pid: int
    started: int

    @classmethod
    def of(cls, process: Process) -> Started:
        """As it is recorded."""
        return cls(pid=process.pid, started=process.started)

    @property
    def process(self) -> Process:
        """As a process that can be asked whether it is still itself."""
        return Process(self.pid, self.started)


class Record(Base, frozen=True, kw_only=True):
    """A lab: its topology file, its processes by name (`felix@node1`), its pods' addresses, and whether `up` ended.

    `builder` is the process that brings it up, or did.
    """

    name: str
    topology: str
    builder: Started | None = None
    processes: Mapping[str, Started] = {}
    pods: Mapping[str, tuple[str, ...]] = {}
    complete: bool = False

    @property
    def up(self) -> bool:
        """Whether all of it runs."""
        return self.complete and all(each.process.alive() for each in self.processes.values())

    @property
    def coming_up(self) -> bool:
        """Whether somebody is at work on it."""
        return not self.complete and self.builder is not None and self.builder.process.alive()

    @property
    def pod_addresses(self) -> Mapping[str, tuple[Address, ...]]:
        """The addresses of every pod by `namespace/name`."""
        return {pod: tuple(ip_address(text) for text in texts) for pod, texts in self.pods.items()}


def directory(name: str) -> Path:
    """Where the lab `name` keeps its sockets, logs and record. What is no name is refused: it might lead elsewhere."""
    if not NAME.fullmatch(name):
        raise MuslinError(f"{name!r} is no lab's name: at most 32 lower-case letters, digits and inner dashes")
    return HOME / name


def read(name: str) -> Record | None:
    """The record of a lab; None when there is none. A half-written one cannot exist."""
    try:
        return msgspec.json.decode((directory(name) / _FILE).read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise MuslinError(f"{directory(name) / _FILE} is damaged ({error}): remove {directory(name)}") from error


def write(record: Record) -> None:
    """Put a record in place of the one before."""
    home = directory(record.name)
    home.mkdir(parents=True, exist_ok=True)
    draft = home / f".{_FILE}.{os.getpid()}"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1))
    draft.replace(home / _FILE)


def forget(name: str) -> None:
    """Remove all that a lab left in the file system."""
    shutil.rmtree(directory(name), ignore_errors=True)
    with contextlib.suppress(OSError):  # another lab's is there, or none ever was
        HOME.rmdir()


def all_names() -> tuple[str, ...]:
    """The labs that have left a record."""
    return tuple(sorted(path.parent.name for path in HOME.glob(f"*/{_FILE}")))

"""A lab's ground without muslin on it: namespaces, links and running routers, gone at the end whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lab import processes, underlay
from lab.processes import Process
from lab.routers import Router
from lab.topology import parse
from lab.wiring import Wiring, wire
from linux import netns

RUN = Path("/run/muslin/tests")
"""Where FRR, which gives up root, can reach its files; pytest's own directories are root's alone."""

_numbers = count()


@dataclass
class Ground:
    """Wired namespaces with routers running in them."""

    name: str
    wiring: Wiring
    routers: dict[str, Router] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)

    def namespace(self, host: str) -> str:
        return underlay.namespace(self.name, host)


@pytest.fixture
def ground() -> Iterator[Callable[[Mapping[str, Any]], Ground]]:
    """Makes a ground from a topology."""
    made: list[Ground] = []

    def make(document: Mapping[str, Any]) -> Ground:
        lab = f"t{os.getpid()}-{next(_numbers)}"
        ground = Ground(lab, wire(parse(document)))
        made.append(ground)
        underlay.build(lab, ground.wiring)
        for name in ground.wiring.routers:
            directory = RUN / lab
            ground.routers[name] = underlay.router(lab, ground.wiring, name, directory)
            ground.processes += ground.routers[name].start()
        return ground

    yield make
    for each in made:
        names = netns.names(underlay.prefix(each.name))
        processes.stop(each.processes)
        assert not netns.inhabitants(names)
        for name in names:
            netns.delete(name)
        shutil.rmtree(RUN / each.name, ignore_errors=True)
    with contextlib.suppress(OSError):  # another run of the tests uses it, or none of ours did
        RUN.rmdir()


@pytest.fixture
def wait() -> Callable[[Callable[[], object]], None]:
    """Wait until a condition is true, 20 s at most."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.05)

    return wait

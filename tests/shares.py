"""How the processes that run the suite together (`make test`) share it: by files, and the long ones first.

What a module's or a folder's tests stand on may be dear (a rack of routers, two container runtimes), so these stay
together, in the process that makes it. What is begun last has to be short, or one process ends minutes after the
other: `LONGEST` says what is not. A name that is missing there costs time and nothing else.

Whatever a test makes on this host therefore bears its process's number, and what it finds there may be another's.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

WHOLE: Final = ("tests/bfd", "tests/packets", "tests/runtimes")
"""Folders that are one share: the first because one of its cases takes all cores while others count milliseconds."""

BY_CASE: Final = "tests/interop"
"""A folder whose fixture is made once for each kind of router: `[bird]` of all its files is one share, and so on."""

LONGEST: Final = (
    "tests/demo",
    "tests/interop",
    "tests/packets",
    "tests/survive",
    "tests/runtimes",
    "tests/lab",
    "tests/cli/test_bgp_lab.py",
    "tests/felix/test_ipip.py",
    "tests/datastore/ipam/test_ipam_model.py",
    "tests/bgp",
    "tests/bfd",
    "tests/cni",
    "tests/felix",
    "tests/datastore",
)
"""What is begun first, in this order: folders and files."""


def share(nodeid: str) -> str:
    """What has to run in one process with this test."""
    file, _, test = nodeid.partition("::")
    folder = str(PurePosixPath(file).parent)
    if folder in WHOLE:
        return folder
    if folder == BY_CASE:
        return f"{folder}[{test.partition('[')[2]}"
    return file


def place(nodeid: str) -> int:
    """Where the test's share stands in the row of what is begun."""
    file = PurePosixPath(nodeid.partition("::")[0])
    return next((at for at, name in enumerate(LONGEST) if file.is_relative_to(name)), len(LONGEST))


class Shares(LoadScopeScheduling):
    """xdist's way to keep scopes together, with our scopes."""

    def _split_scope(self, nodeid: str) -> str:
        return share(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shares:
    """Called where there are several processes only."""
    config.option.loadscopereorder = False  # by the number of tests, the four of the demo would come last
    return Shares(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """After pytest has put together what one case of a fixture is for: its order stays within each share."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: place(item.nodeid))

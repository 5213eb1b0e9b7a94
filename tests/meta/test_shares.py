"""How the suite is shared between processes: nothing that stands on one thing is torn apart, and no name is stale."""

from __future__ import annotations

from pathlib import Path

import pytest
from shares import BY_CASE, LONGEST, WHOLE, place, share

HOUSE = Path(__file__).parents[2]


@pytest.mark.parametrize("name", [*WHOLE, BY_CASE, *LONGEST])
def test_every_name_is_there(name: str) -> None:
    assert (HOUSE / name).exists()


@pytest.mark.parametrize("name", ["tests/packets", "tests/runtimes", BY_CASE])
def test_the_fixture_of_a_folder_ends_with_the_folder(name: str) -> None:
    """Without this file pytest takes the scope `package` for that of the session."""
    assert (HOUSE / name / "__init__.py").exists()


def test_a_file_is_a_share() -> None:
    assert share("tests/core/test_memo.py::test_a") == share("tests/core/test_memo.py::test_b[x]")
    assert share("tests/core/test_memo.py::test_a") != share("tests/core/test_prefix.py::test_a")


def test_what_stands_on_one_fixture_is_one_share() -> None:
    assert share("tests/packets/test_packets_order.py::test_a") == share(
        "tests/packets/test_packets_atomic.py::test_b[x]"
    )
    bird, other = (
        "tests/interop/test_interop_bfd.py::test_a[bird]",
        "tests/interop/test_interop_guards.py::test_b[bird]",
    )
    assert share(bird) == share(other) != share("tests/interop/test_interop_bfd.py::test_a[frr]")


def test_the_longest_come_first() -> None:
    first = "tests/demo/test_demo.py::test_a", "tests/interop/test_interop_bfd.py::test_a[bird]"
    assert [place(each) for each in first] == [0, 1]
    assert place("tests/core/test_memo.py::test_a") > max(map(place, first))

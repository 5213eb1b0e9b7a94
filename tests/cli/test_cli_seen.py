"""Who is silent, by clocks that disagree: an agent that lives is never called dead because its clock is wrong."""

from datetime import UTC, datetime, timedelta

import pytest

from cli.seen import Seen, seen
from core.names import Key
from core.resources import FelixStatus

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def found(*ages: float | None) -> list[Seen]:
    """Reports in the order they were written; their age in seconds by their own clock (negative: ahead)."""
    keys = [Key(FelixStatus.KIND, "", str(number)) for number in range(len(ages))]
    stamps = ["" if age is None else (NOW - timedelta(seconds=age)).isoformat() for age in ages]
    by_key = seen(reversed(list(zip(keys, range(1, len(ages) + 1), stamps, strict=True))), NOW)
    return [by_key[key] for key in keys]


@pytest.mark.parametrize(
    ("ages", "cells", "wrong"),
    [
        ((70, 40, 10), ("1m", "40s", "10s"), (True, False, False)),
        ((10, 300), ("10s", "10s"), (False, False)),  # five minutes slow, and its report came after one of 10 s ago
        ((300, 10), ("5m", "10s"), (True, False)),  # nothing tells this from an agent that has died
        ((10, -300), ("10s", "clock"), (False, False)),  # fast, and known to live
        ((-300, 10), ("clock", "10s"), (True, False)),
        ((90, -300), ("1m", "clock"), (True, True)),
        ((-3,), ("0s",), (False,)),
        ((None,), ("?",), (True,)),
        ((10, None), ("10s", "10s"), (False, False)),
    ],
)
def test_the_order_of_writes_clears_a_wrong_clock(
    ages: tuple[float | None, ...], cells: tuple[str, ...], wrong: tuple[bool, ...]
) -> None:
    reports = found(*ages)
    assert tuple(map(str, reports)) == cells
    assert tuple(bool(each.wrong("felix")) for each in reports) == wrong


def test_only_what_is_known_to_be_old_is_called_silent() -> None:
    dead, ahead, unknown = found(90, -300, 90)[0], found(-300)[0], found(None)[0]
    assert [each.silent for each in (dead, ahead, unknown)] == [True, False, False]
    assert dead.wrong("bgp") == "bgp has been silent for 1m; what is shown of it is from its last report"
    assert "from the future" in ahead.wrong("bgp")
    assert "bears no time" in unknown.wrong("bgp")

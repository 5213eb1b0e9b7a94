"""What people call things, and how ages and tables read: pure."""

from datetime import UTC, datetime

import pytest

from cli.kinds import NAMES, kind_of, parse_target, reference
from cli.render import Table, age
from core.errors import Invalid
from core.names import Key
from core.resources import CLASSES

NOW = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize("cls", CLASSES, ids=[f"{cls.KIND.name}.{cls.KIND.group}" for cls in CLASSES])
def test_every_kind_is_found_by_its_full_names_and_by_its_reference(cls: type) -> None:
    kind = cls.KIND
    assert kind_of(f"{kind.plural}.{kind.group}") is kind
    assert kind_of(f"{kind.name}.{kind.group}") is kind
    key = Key(kind, "shop" if kind.namespaced else "", "web")
    assert parse_target(reference(key), None, None) == (kind, "web", "shop" if kind.namespaced else None)


def test_short_names_are_those_people_know() -> None:
    known = {"gnp": "GlobalNetworkPolicy", "hep": "HostEndpoint", "ns": "Namespace", "sa": "ServiceAccount"}
    assert {name: NAMES[name].name for name in known} == known
    assert (NAMES["np"].group, NAMES["netpol"].group) == ("projectcalico.org", "networking.k8s.io")


@pytest.mark.parametrize("words", [("pool//x", None, None), ("np/a/b/c", None, None), ("pool/x", "y", None)])
def test_a_target_that_is_not_one_object_is_refused(words: tuple[str, str | None, str | None]) -> None:
    with pytest.raises(Invalid):
        parse_target(*words)


@pytest.mark.parametrize(
    ("stamp", "text"),
    [
        ("2026-01-02T11:59:18Z", "42s"),
        ("2026-01-02T11:00:01Z", "59m"),
        ("2026-01-02T11:00:00+00:00", "1h"),
        ("2025-12-24T11:00:00Z", "9d"),
        ("2026-01-02T12:00:05Z", "0s"),
        ("", ""),
        ("yesterday", ""),
    ],
)
def test_age(stamp: str, text: str) -> None:
    assert age(stamp, NOW) == text


def test_a_plain_table_lines_up_and_has_no_trailing_spaces() -> None:
    table = Table(("NAME", "AS"), (("a-long-name", "1"), ("b", "65001")))
    assert table.plain().splitlines() == ["NAME         AS", "a-long-name  1", "b            65001"]
    assert Table(("NAME",), ()).plain() == "NAME"

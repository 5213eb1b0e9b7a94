"""That one match implies another is said only where it is so, and where people would expect it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_worlds_rules import rule, selector

from core.resources.policy import Rule
from core.selector import parse
from policy.model import Match
from policy.rules import convert_rules
from policy.whatif.implies import implies, matches

VALUES = ["", "web", "db", "w", "wd"]
SETTINGS = settings(
    max_examples=400, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@SETTINGS
@given(seed=st.integers(0, 2**32 - 1))
def test_a_selector_that_implies_another_selects_no_more(seed: int) -> None:
    rng = Random(seed)
    inner, outer = (parse(selector.draw(rng)) for _ in range(2))
    if implies(inner, outer):
        for app in [None, *VALUES]:
            for env in [None, *VALUES]:
                for home in ("a", "b"):
                    labels = {"projectcalico.org/namespace": home, "kubernetes.io/metadata.name": home}
                    labels |= {name: value for name, value in (("app", app), ("env", env)) if value is not None}
                    assert not inner.matches(labels) or outer.matches(labels), f"{inner} => {outer}: {labels}"


def match(**fields: object) -> Match:
    import msgspec

    found, closed = convert_rules([(0, msgspec.convert({"action": "Allow", **fields}, Rule))], "")[:2]
    assert not closed
    return found[0].match


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ({}, {}),
        ({"protocol": "TCP"}, {}),
        ({"protocol": "TCP"}, {"notProtocol": "UDP"}),
        ({"protocol": "TCP", "destination": {"ports": [80]}}, {"protocol": "TCP", "destination": {"ports": ["1:100"]}}),
        (
            {"protocol": "TCP", "destination": {"ports": [80]}},
            {"protocol": "TCP", "destination": {"notPorts": [443, "90:99"]}},
        ),
        ({"source": {"nets": ["10.0.0.0/9", "10.128.0.0/10"]}}, {"source": {"nets": ["10.0.0.0/9", "10.128.0.0/9"]}}),
        ({"source": {"nets": ["10.1.0.0/16"]}}, {"source": {"notNets": ["192.0.2.0/24"]}}),
        ({"source": {"selector": "a == 'b'"}}, {"source": {"selector": "a in {'b', 'c'}"}}),
        ({"source": {"selector": "a == 'b' && c == 'd'"}}, {"source": {"selector": "has(c)"}}),
        ({"source": {"selector": "a == 'b'"}}, {"source": {"nets": ["0.0.0.0/0", "::/0"]}}),
        ({"source": {"notSelector": "has(a)"}}, {"source": {"notSelector": "a == 'b'"}}),
        ({"protocol": "ICMP", "icmp": {"type": 8, "code": 0}}, {"protocol": "ICMP", "icmp": {"type": 8}}),
        ({"protocol": "ICMP", "icmp": {"type": 8}}, {"protocol": "ICMP", "notICMP": {"type": 3}}),
        (
            {"protocol": "TCP", "destination": {"ports": ["http"]}},
            {"protocol": "TCP", "destination": {"ports": ["http", 80]}},
        ),
    ],
)
def test_what_is_narrower_implies_what_is_wider(inner: dict[str, object], outer: dict[str, object]) -> None:
    assert matches(match(**inner), match(**outer))
    if inner != outer:
        assert not matches(match(**outer), match(**inner))


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ({}, {"ipVersion": 4}),
        ({"notProtocol": "TCP"}, {"notProtocol": "UDP"}),
        ({"source": {"nets": ["10.0.0.0/8"]}}, {"source": {"notNets": ["10.1.0.0/16"]}}),
        ({"source": {"selector": "a == 'b'"}}, {"destination": {"selector": "a == 'b'"}}),
        ({"source": {}}, {"source": {"nets": ["0.0.0.0/0"]}}),
        ({"protocol": "ICMP"}, {"protocol": "ICMP", "notICMP": {"type": 3}}),
    ],
)
def test_what_is_not_narrower_does_not(inner: dict[str, object], outer: dict[str, object]) -> None:
    assert not matches(match(**inner), match(**outer))


@SETTINGS
@given(seed=st.integers(0, 2**32 - 1))
def test_every_rule_implies_itself(seed: int) -> None:
    drawn = rule().draw(Random(seed))
    found = convert_rules([(0, drawn)], "a")[0]
    assert all(matches(each.match, each.match) or _names_of_a_peer(each.match) for each in found)


def _names_of_a_peer(found: Match) -> bool:
    """Named ports of a peer are left alone: whose they are depends on the selector."""
    return any(
        side.peer is not None and side.ports is not None and side.ports.names
        for side in (found.source, found.destination)
    )

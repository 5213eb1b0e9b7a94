"""Whose connections are looked at when something changed, and which of them end."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from core.resources import Resource
from felix.cut import TCP, UDP, Look, Ruling, cuts, look
from felix.desired import desired
from felix.model import Config
from linux.conntrack import Flow, Status, Tuple
from linux.model import Facts
from tests.felix.cluster import (
    CONFIG,
    allow_from,
    block,
    deny,
    felix,
    global_deny,
    namespace,
    node,
    pod,
    pool,
    snapshot,
)

WEB, DB, FAR = (ip_address(text) for text in ("10.0.0.1", "10.0.0.2", "10.0.9.9"))
BASE: tuple[Resource, ...] = (
    node("a", "10.1.0.1/24"),
    namespace("shop"),
    pool("pods", "10.0.0.0/16"),
    block("10.0.0.0/30", "a"),
    pod("web", "10.0.0.1", app="web"),
    pod("db", "10.0.0.2", app="db"),
    pod("far", "10.0.9.9", on="b", app="far"),
    allow_from("db", "shop", "app == 'db'", "app == 'far'", 80, "TCP"),
)


def ruling(*changes: Resource, config: Config = CONFIG) -> Ruling:
    resources = {each.key: each for each in (*BASE, *changes)}
    found = desired(snapshot(resources.values()), Facts(), config).ruling
    assert found is not None
    return found


def flow(source: str, destination: str, port: int = 80, protocol: int = TCP, **fields: object) -> Flow:
    there, back = ip_address(source), ip_address(destination)
    made = Flow(
        original=Tuple(there, back, protocol, 40000, port),
        reply=Tuple(back, there, protocol, port, 40000),
        zone=0,
        status=Status.CONFIRMED,
        timeout_s=100,
        mark=0,
        state="",
        id=1,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def test_nothing_is_looked_at_when_nothing_changed() -> None:
    same = ruling()
    assert not look(same, same)
    assert not look(same, ruling()), "an equal one, made anew"
    assert not look(same, ruling(namespace("elsewhere"))), "a change of no consequence here"


def test_at_the_first_ruling_all_that_is_local_and_addresses_of_nobody() -> None:
    found = look(None, ruling())
    assert found.judged == {WEB, DB}
    assert found.gone == {ip_address("10.0.0.0"), ip_address("10.0.0.3")}
    assert look(None, replace(ruling(), host=frozenset({ip_address("10.0.0.3")}))).gone == {ip_address("10.0.0.0")}


def test_only_endpoints_whose_rules_changed_and_peers_that_are_others_now() -> None:
    before = ruling()
    assert look(before, ruling(deny("web", "shop", "app == 'web'"))) == Look(frozenset({WEB}))
    stranger = look(before, ruling(pod("far", "10.0.9.9", on="b", app="stranger")))
    assert FAR in stranger.judged
    assert WEB not in stranger.judged
    nets = global_deny("nets", "app == 'web'")
    assert look(before, ruling(nets)).judged >= {WEB}


def test_an_address_that_goes_or_passes_on() -> None:
    before = ruling()
    assert look(before, replace(before, owners={WEB: before.owners[WEB]})).gone == {DB}
    assert look(before, ruling(pod("db", "10.0.0.2", container="another", app="db"))).gone == {DB}
    assert look(replace(before, owners={}), before).gone == frozenset(), "nobody had it: what it has is its own"


def test_switched_off_only_what_has_no_end_any_more() -> None:
    off = ruling(felix(policy_cut_connections="Disabled"), deny("all", "shop"))
    assert look(ruling(), off) == Look()
    assert look(None, off).judged == frozenset()
    assert not list(cuts(Look(frozenset({WEB})), off, [flow("10.0.0.1", "10.0.9.9")]))
    assert look(off, replace(off, enabled=True)).judged == {WEB, DB}


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        (flow("10.0.9.9", "10.0.0.2"), False),
        (flow("10.0.9.9", "10.0.0.2", 81), True),
        (flow("10.0.9.9", "10.0.0.2", protocol=UDP), True),
        (flow("10.0.0.1", "10.0.0.2"), True),
        (flow("10.0.0.2", "10.0.9.9", 81), False),
        (flow("10.1.0.1", "10.0.0.2", 81), False),  # the host's own
        (flow("10.0.9.9", "10.0.0.2", 81, status=Status.EXPECTED), False),
        (flow("192.0.2.1", "10.0.9.9", 81), False),  # both ends elsewhere
        (flow("10.0.9.9", "10.0.0.3", 81), True),  # nobody's
        (flow("10.0.9.9", "10.96.0.1", 443, reply=Tuple(DB, FAR, TCP, 80, 40000)), False),
        (flow("10.0.9.9", "10.96.0.1", 80, reply=Tuple(DB, FAR, TCP, 81, 40000)), True),
    ],
)
def test_what_ends(given: Flow, ends: bool) -> None:
    now = replace(ruling(), host=frozenset({ip_address("10.1.0.1")}))
    assert bool(list(cuts(look(None, now), now, [given]))) is ends


def test_an_endpoint_that_has_no_rules_has_no_flows() -> None:
    now = ruling()
    closed = replace(now, compiled=replace(now.compiled, chains={}))
    (cut,) = cuts(Look(frozenset({WEB})), closed, [flow("10.0.0.1", "10.0.9.9")])
    assert "is cut off" in cut.why

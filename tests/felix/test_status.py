"""What felix reports: per endpoint, the programmed revision, and what stands in the way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.addr import host_prefix
from core.breaker import RELEASE
from core.names import IPIP_DEVICE, workload_interface
from core.nftables import Element
from core.reconcile import Progress
from core.resources.network import EncapMode
from felix.desired import desired
from felix.model import Desired
from felix.status import MOST_ERRORS, Outcome, state
from linux.model import RouteKey
from policy import identity
from tests.felix.cluster import CONFIG, REVISION, allow_from, facts, link, namespace, node, pod, pool, snapshot

WEB, DB = workload_interface("shop", "web"), workload_interface("shop", "db")
DONE = Progress(revision=3, tried=3)
FINE = Outcome(sysctls=DONE, tunnels=DONE, addresses=DONE, nft=DONE, routes=DONE)


def wanted(mode: EncapMode = EncapMode.NEVER) -> Desired:
    resources = (
        node("a", "10.1.0.1/24"),
        namespace("shop"),
        pool("pods", "10.0.0.0/16", ipip_mode=mode),
        pod("web", "10.0.0.1"),
        pod("db", "10.0.0.2"),
        pod("odd", "10.0.0.3", interface="eth7"),
    )
    return desired(snapshot(resources), facts(link("eth0", 2, "10.1.0.1/24"), link(WEB, 5)), CONFIG)


def states(outcome: Outcome) -> dict[str, tuple[str, str]]:
    found = state(wanted(), outcome, REVISION, "").endpoints
    return {name.split("-")[2]: (each.state, each.reason) for name, each in found.items()}


def test_up_pending_and_set_aside() -> None:
    found = states(FINE)
    assert found["web"] == ("up", "")
    assert found["db"] == ("pending", f"there is no interface {DB} yet")
    assert found["odd"][0] == "error"
    assert "'eth7'" in found["odd"][1]


def test_an_error_touches_the_endpoint_it_is_about() -> None:
    key = RouteKey(host_prefix(wanted().endpoints[1].addresses[0]), 100)
    route = Progress(tried=3, errors={key: "10.0.0.1/32: network is down"})
    assert states(Outcome(sysctls=DONE, tunnels=DONE, addresses=DONE, nft=DONE, routes=route))["web"] == (
        "error",
        "10.0.0.1/32: network is down",
    )
    other = Progress(tried=3, errors={RouteKey(key.destination, 400): "no"})
    assert states(Outcome(sysctls=DONE, tunnels=DONE, addresses=DONE, nft=DONE, routes=other))["web"] == ("up", "")
    rules = Progress(tried=3, errors={Element("to-workload", f'"{WEB}"'): "nft said no"})
    assert states(Outcome(sysctls=DONE, tunnels=DONE, addresses=DONE, nft=rules, routes=DONE))["web"] == (
        "error",
        "nft said no",
    )
    unread = Progress(tried=3, failure="routes: cannot be read")
    assert states(Outcome(sysctls=DONE, tunnels=DONE, addresses=DONE, nft=DONE, routes=unread))["web"][0] == "error"


def test_ready_means_all_of_this_revision_and_nothing_wrong() -> None:
    assert state(wanted(), FINE, REVISION, "").ready
    assert not state(wanted(), FINE, REVISION - 1, "").ready
    said = state(replace(wanted(), held=("80 of 90 policies vanished at once",)), FINE, REVISION - 1, "")
    assert not said.ready
    assert (said.programmed, said.decided) == (REVISION - 1, REVISION), (
        "a pod that is up waits for nobody else's trouble"
    )
    assert any("80 of 90 policies" in problem and RELEASE in problem for problem in said.problems)


def test_a_refused_tunnel_is_said_and_holds_nothing_back() -> None:
    refused = Progress(tried=3, errors={IPIP_DEVICE: "this kernel has no ipip"})
    outcome = Outcome(sysctls=DONE, tunnels=refused, addresses=DONE, nft=DONE, routes=DONE)
    assert (outcome.tried, outcome.done) == (3, 3)
    said = state(wanted(EncapMode.ALWAYS), outcome, REVISION, "")
    assert said.ready
    assert f"{IPIP_DEVICE}: this kernel has no ipip (pools that need it: pods)" in said.problems


def test_a_thousand_errors_are_not_repeated_a_thousand_times() -> None:
    many = Progress(tried=3, errors={Element("x", str(n)): f"refused {n}" for n in range(1000)})
    said = state(wanted(), Outcome(sysctls=DONE, tunnels=DONE, addresses=DONE, nft=many, routes=DONE), REVISION, "")
    assert len([problem for problem in said.problems if "refused" in problem]) == MOST_ERRORS


def test_kinds_of_address_without_a_number_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = (
        node("a", "10.1.0.1/24"),
        namespace("shop"),
        pool("pods", "10.0.0.0/16"),
        pod("web", "10.0.0.1", app="web"),
        pod("db", "10.0.0.2", app="db"),
        allow_from("p", "shop", "app == 'db'", "app == 'web'", 80, "TCP"),
    )

    def problems() -> list[str]:
        return state(desired(snapshot(resources), facts(), CONFIG), FINE, REVISION, "").problems

    assert problems() == []
    monkeypatch.setattr(identity, "MOST_CLASSES", 1)
    (said,) = problems()
    assert said.startswith("2 kinds of address are denied here")

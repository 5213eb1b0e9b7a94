"""What Prometheus is told of the speaker, and that the example alerts ask for nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bgp.reporting.metrics import MOST_CAUSES, MOST_SESSIONS, Measured, Metrics
from core.metrics import exposed
from core.resources.status import SessionState, SpeakerState

ALERTS = Path(__file__).parents[2] / "deploy" / "alerts" / "muslin-bgp.rules.yaml"
METRIC = re.compile(r"\bmuslin_\w+")
LABEL = re.compile(r"\$labels\.(\w+)")

ORDER = ("peer", "name", "family", "cause", "code", "state", "stage", "reconciler")
"""Of labels, in the tests."""

SINCE = "2026-01-01T00:00:00Z"

UP = SessionState(
    peer="10.9.1.1",
    name="BGPPeer/tor",
    as_number=65001,
    state="Established",
    since=SINCE,
    flaps=2,
    last_error="the peer sent Cease, Administrative Reset (6/4)",
    last_error_at="2025-12-31T23:59:00Z",
    received=9,
    accepted=7,
    refused={"in no IPPool": 2},
    advertised=3,
    pending=1,
    most_in=10,
    hold_s=30,
    bfd="Up",
    bfd_flaps=1,
)
DOWN = SessionState(peer="fd00::1", name="BGPPeer/tor6", as_number=65001, state="Down", since=SINCE, most_out=5, bfd="")
BLOCKED = SessionState(peer="rack-1", name="BGPPeer/odd", as_number=65001, state="Blocked", reason="no such filter")
SAID = SpeakerState(
    ready=True, told=7, programmed=6, sessions=[UP, DOWN, BLOCKED], heard=9, routes_in=5, restarts=2, pending=1
)
MEASURED = Measured(differences={"heard": 3}, writes={"adverts": 40}, running=True, ping_s=0.25)


def told(said: SpeakerState, measured: Measured = MEASURED) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name, then by the labels' values."""
    metrics = Metrics()
    metrics.tell(said, measured)
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(exposed(metrics.families()).decode()):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = tuple(value for _, value in sorted(sample.labels.items(), key=lambda label: ORDER.index(label[0])))
            assert labels not in series, (sample.name, labels)
            series[labels] = sample.value
    return found


TOR = ("10.9.1.1", "BGPPeer/tor", "ipv4")
TOR6 = ("fd00::1", "BGPPeer/tor6", "ipv6")
ODD = ("rack-1", "BGPPeer/odd", "")


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("session_up", {TOR: 1, TOR6: 0, ODD: 0}),
        ("session_blocked", {TOR: 0, TOR6: 0, ODD: 1}),
        ("session_established_timestamp_seconds", {TOR: 1767225600}),
        ("session_flaps_total", {TOR: 2, TOR6: 0, ODD: 0}),
        ("session_prefixes_received", {TOR: 9, TOR6: 0, ODD: 0}),
        ("session_prefixes_accepted", {TOR: 7, TOR6: 0, ODD: 0}),
        ("session_prefixes_advertised", {TOR: 3, TOR6: 0, ODD: 0}),
        ("session_prefixes_pending", {TOR: 1, TOR6: 0, ODD: 0}),
        ("session_prefixes_received_limit", {TOR: 10}),
        ("session_prefixes_advertised_limit", {TOR6: 5}),
        ("session_prefixes_refused", {(*TOR, "in no IPPool"): 2}),
        ("session_last_error_timestamp_seconds", {(*TOR, "6/4"): 1767225540}),
        ("session_hold_seconds", {TOR: 30}),
        ("session_bfd_up", {TOR: 1}),
        ("session_bfd_flaps_total", {TOR: 1, TOR6: 0, ODD: 0}),
        ("sessions", {("Established",): 1, ("Down",): 1, ("Blocked",): 1}),
        ("differences", {("told",): 0, ("heard",): 3, ("kernel",): 0}),
        ("adverts_pending", {(): 1}),
        ("rib_paths", {(): 9}),
        ("kernel_routes", {(): 5}),
        ("exabgp_restarts_total", {(): 2}),
        ("exabgp_ping_seconds", {(): 0.25}),
        ("exabgp_up", {(): 1}),
        ("told_revision", {(): 7}),
        ("writes_total", {("adverts",): 40}),
    ],
)
def test_what_is_told(name: str, series: dict[tuple[str, ...], float]) -> None:
    assert told(SAID)[f"muslin_bgp_{name}"] == series


def test_an_idle_speaker_measures_too() -> None:
    found = told(SpeakerState(), Measured())
    assert found["muslin_bgp_ready"] == {(): 0}
    assert "muslin_bgp_exabgp_ping_seconds" not in found


def test_labels_are_bounded() -> None:
    sessions = [
        SessionState(
            peer=f"10.{number // 250}.{number % 250}.1",
            name=f"mesh/n{number}",
            as_number=1,
            state="Down",
            refused={f"cause {cause}": cause + 1 for cause in range(50)},
        )
        for number in range(MOST_SESSIONS + 7)
    ]
    found = told(SpeakerState(sessions=sessions))
    assert len(found["muslin_bgp_session_up"]) == MOST_SESSIONS
    assert found["muslin_bgp_sessions"][("Down",)] == MOST_SESSIONS + 7
    refused = {labels[3]: count for labels, count in found["muslin_bgp_session_prefixes_refused"].items()}
    assert len(refused) == MOST_CAUSES + 1
    assert sum(refused.values()) == sum(range(1, 51))


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=[rule["alert"] for rule in rules()])
def test_an_example_alert_asks_for_what_is_told(rule: dict[str, Any]) -> None:
    metrics = Metrics()
    metrics.tell(SAID, MEASURED)
    labels = {family.name: set(family.labels) for family in metrics.families()}
    named = METRIC.findall(rule["expr"])
    assert named
    assert set(named) <= labels.keys()
    said = " ".join(rule["annotations"].values())
    assert set(METRIC.findall(said)) <= labels.keys()
    assert set(LABEL.findall(said)) <= labels[named[0]] | {"instance"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert {"summary", "description"} <= rule["annotations"].keys()

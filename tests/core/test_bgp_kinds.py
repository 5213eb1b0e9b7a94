"""Secret and CalicoNodeStatus: read, kept, printed and refused; a secret's content is in no message."""

from __future__ import annotations

import traceback
from base64 import b64encode
from typing import Any

import pytest
import yaml

from core.errors import Invalid
from core.manifest import decode, encode, load, render, to_yaml
from core.resources import CalicoNodeStatus, Secret, parse_path

HUSH = "hunter2hunter2"


def secret(**fields: Any) -> str:
    head = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bgp", "namespace": "calico-system"}}
    return yaml.safe_dump(head | fields)


def question(status: Any = None, **spec: Any) -> str:
    head = {"apiVersion": "projectcalico.org/v3", "kind": "CalicoNodeStatus", "metadata": {"name": "q"}, "spec": spec}
    return yaml.safe_dump(head | ({"status": status} if status else {}))


def refusals(text: str) -> list[str]:
    try:
        load(text, "f")
    except Invalid as invalid:
        return [f"{problem.path}: {problem.why}" for problem in invalid.problems]
    return []


ANSWER = {
    "lastUpdated": "2026-01-02T03:04:05Z",
    "agent": {
        "birdV4": {
            "state": "Ready",
            "version": "5.0.15",
            "routerID": "10.1.0.1",
            "lastBootTime": "2026-01-02T03:00:00Z",
            "lastReconfigurationTime": "2026-01-02T03:01:00Z",
        },
        "birdV6": {"state": "NotReady", "reason": "the node has no IPv6 address"},
    },
    "bgp": {
        "numberEstablishedV4": 1,
        "numberNotEstablishedV4": 1,
        "peersV4": [
            {"peerIP": "10.1.0.2", "type": "NodeMesh", "state": "Established", "since": "2026-01-02T03:00:09Z"},
            {"peerIP": "10.9.0.1", "type": "GlobalPeer", "state": "Blocked", "reason": "no BGPFilter x"},
        ],
        "numberEstablishedV6": 0,
        "numberNotEstablishedV6": 1,
        "peersV6": [{"peerIP": "fd01::2", "type": "NodePeer", "state": "Connect"}],
    },
    "routes": {
        "routesV4": [
            {
                "type": "FIB",
                "destination": "10.244.1.0/26",
                "gateway": "10.1.0.2",
                "interface": "eth0",
                "learnedFrom": {"sourceType": "NodeMesh", "peerIP": "10.1.0.2"},
            },
            {"type": "RIB", "destination": "10.8.0.0/16", "reason": "in no IPPool"},
        ],
        "routesV6": [{"type": "FIB", "destination": "fd44::40/122", "learnedFrom": {"sourceType": "BGPPeer"}}],
    },
}


def test_a_node_status_goes_round_whole() -> None:
    text = question(ANSWER, node="a", classes=["Agent", "BGP", "Routes"], updatePeriodSeconds=0, prefix="10.244.0.0/16")
    (given,) = load(text, "f")
    kept = encode(given)
    assert parse_path(given.key.path) == given.key
    assert encode(decode(given.key, kept)) == kept
    assert encode(load(to_yaml([render(given, 7)]), "g")[0]) == kept
    shown = render(given)
    said = {**ANSWER, "bgp": {key: value for key, value in ANSWER["bgp"].items() if value != 0}}
    assert shown["status"] == said


@pytest.mark.parametrize(("spec", "period_s"), [({}, 10), ({"updatePeriodSeconds": 0}, 0)])
def test_how_often_a_node_answers(spec: dict[str, int], period_s: int) -> None:
    (given,) = load(question(node="a", **spec), "f")
    assert isinstance(given, CalicoNodeStatus)
    assert given.spec.period_s == period_s


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "spec.node: is required: the node that is asked"),
        ({"node": "A_1"}, "spec.node: 'A_1' is not a name"),
        ({"node": "a", "classes": ["bgp"]}, "spec.classes[0]: 'bgp' is not one of Agent, BGP, Routes, Adverts"),
        ({"node": "a", "classes": ["BGP", "BGP"]}, "spec.classes[1]: 'BGP' is given twice"),
        ({"node": "a", "updatePeriodSeconds": -1}, "spec.updatePeriodSeconds: -1 is not within 0 to 86400"),
        ({"node": "a", "updatePeriodSeconds": 86401}, "spec.updatePeriodSeconds: 86401 is not within 0 to 86400"),
        ({"node": "a", "prefix": "10.0.0.1/8"}, "spec.prefix: '10.0.0.1/8' has host bits set"),
    ],
)
def test_a_node_status_that_is_refused(spec: dict[str, Any], says: str) -> None:
    (said,) = refusals(question(**spec))
    assert said.startswith(says)


def test_a_secret_in_either_spelling_is_one_secret() -> None:
    (plain,) = load(secret(stringData={"rack": HUSH}), "f")
    (coded,) = load(secret(data={"rack": b64encode(HUSH.encode()).decode()}, type="Opaque"), "f")
    assert isinstance(plain, Secret)
    assert plain.value("rack") == HUSH.encode()
    assert plain.value("other") is None
    assert encode(plain) == encode(coded)
    assert encode(decode(plain.key, encode(plain))) == encode(plain)
    assert HUSH.encode() not in encode(plain)
    both = load(secret(stringData={"rack": "new"}, data={"rack": "b2xk", "spine": "b2xk"}), "f")[0]
    assert isinstance(both, Secret)
    assert (both.value("rack"), both.value("spine")) == (b"new", b"old")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"data": {"rack": HUSH + "!"}}, "data.rack"),
        ({"data": {"rack": 12345678}}, "data.rack"),
        ({"stringData": {"rack": 12345678}}, "stringData.rack"),
        ({"stringData": HUSH}, "stringData"),
        ({"data": {"a b": "b2xk"}}, "data.a b"),
        ({"stringData": {"rack": HUSH * 80_000}}, "data"),
    ],
)
def test_a_secret_that_is_refused_is_not_told(fields: dict[str, Any], path: str) -> None:
    (said,) = refusals(secret(**fields))
    assert said.startswith(f"{path}: ")
    assert HUSH not in said
    assert "12345678" not in said


def test_what_is_kept_of_a_secret_is_not_told_when_it_cannot_be_read() -> None:
    (given,) = load(secret(stringData={"rack": HUSH}), "f")
    for broken in (
        b'{"metadata":{"name":"bgp"},"data":{"rack":12345678}}',
        b'{"data":{"rack":"12345678!"}}',
        b"12345678",
    ):
        with pytest.raises(Invalid) as caught:
            decode(given.key, broken)
        assert "12345678" not in str(caught.value)


def test_no_repr_and_no_traceback_shows_a_secret() -> None:
    (given,) = load(secret(stringData={"rack": HUSH}), "f")
    coded = b64encode(HUSH.encode()).decode()
    assert isinstance(given, Secret)
    with pytest.raises(ValueError, match="base64") as caught:
        Secret(metadata=given.metadata, data={"rack": HUSH + "!"}).value("rack")
    said = "".join(traceback.format_exception(caught.value)) + repr(given) + f"{given}{[given]}"
    assert HUSH not in said
    assert coded not in said

"""bgp status, diff and routes, and node drain, over reports that the test itself put into a real datastore."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import clock, manifest
from core.resources import Metadata, Node, SpeakerStatus
from core.resources.status import Difference, SessionState, SpeakerState
from datastore import objects
from datastore.api import Put
from datastore.client import GrpcStore

Muslin = Callable[[str], Any]

LONG_AGO = "2026-01-01T00:00:00Z"


@pytest.fixture
def cluster(muslin: Muslin, tmp_path: Path) -> Muslin:
    """`muslin`, in a cluster of nodes a, b and c."""
    nodes = [
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": {"bgp": {"ipv4Address": f"10.1.0.{number}/24"}},
        }
        for number, name in enumerate("abc", 1)
    ]
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump_all(nodes))
    assert muslin(f"apply -f {tmp_path}/nodes.yaml").code == 0
    return muslin


def session(peer: str = "10.1.0.254", state: str = "Established", **fields: Any) -> SessionState:
    return SessionState(peer=peer, name="BGPPeer/tor", as_number=65001, state=state, **fields)


def report(address: str, **states: SpeakerState) -> None:
    """Write what speakers say, in one transaction."""

    async def write() -> None:
        store = GrpcStore(address)
        try:
            said = [SpeakerStatus(metadata=Metadata(name=name), status=state) for name, state in states.items()]
            await store.txn([Put(each.key, manifest.encode(each)) for each in said])
        finally:
            await store.close()

    asyncio.run(write())


def speaks(*sessions: SessionState, **fields: Any) -> SpeakerState:
    fields = {"ready": True, "reported": clock.now(), **fields}
    return SpeakerState(since=LONG_AGO, as_number=65101, sessions=list(sessions or (session(),)), **fields)


def test_status_says_what_a_person_should_see(cluster: Muslin, datastore: str) -> None:
    earlier = (datetime.now(UTC) - timedelta(minutes=90)).isoformat()
    flapping = session(
        since=earlier,
        flaps=3,
        received=9,
        accepted=7,
        refused={"in no IPPool": 2},
        advertised=1,
        pending=2,
        hold_s=30,
        last_error="Hold Timer Expired (4/0)",
        last_error_at=earlier,
    )
    report(
        datastore,
        a=speaks(flapping, session("10.1.0.253", "Blocked", reason="there is no BGPFilter strict")),
        b=speaks(session(state="Down", reason="no route to host", advertised=2, pending=1), maintenance="Withdrawn"),
    )
    said = cluster("bgp status")
    assert said.code == 0
    nodes, sessions, wrong = said.out.split("\n\n")
    assert nodes.splitlines()[0].split()[-1] == "MAINTENANCE"
    assert nodes.splitlines()[2].split()[-1] == "Withdrawn"
    first, second, third = sessions.splitlines()[1:]
    assert first.split()[:10] == [
        "a",
        "10.1.0.254",
        "BGPPeer/tor",
        "65001",
        "Established",
        "1h",
        "3",
        "7/9",
        "1+2",
        "30s",
    ]
    assert first.endswith("2 refused: in no IPPool; 1h ago: Hold Timer Expired (4/0)")
    assert second.endswith("there is no BGPFilter strict")
    assert third.endswith("no route to host")
    assert third.split()[7] == "0+3", "nobody is told anything over a session that is down"
    assert wrong.splitlines()[1:] == [
        "a     session with 10.1.0.253 (BGPPeer/tor) is Blocked: there is no BGPFilter strict",
        "b     session with 10.1.0.254 (BGPPeer/tor) is Down: no route to host",
        "c     bgp has never reported",
    ]
    assert cluster("bgp status --check").code == 1
    document = json.loads(cluster("bgp status --node a -o json").out)
    assert [each["node"] for each in document["nodes"]] == ["a"]
    assert document["nodes"][0]["bgp"]["sessions"][0]["lastError"] == "Hold Timer Expired (4/0)"
    unknown = cluster("bgp status --node z")
    assert (unknown.code, unknown.err) == (1, "there is no node z; `muslin get nodes` lists them\n")


BLOCK = "10.244.1.0/26"
TOLD = {"routes_out": [BLOCK]}


def lost(stage: str = "heard", **fields: Any) -> dict[str, Any]:
    """The fields of a report with one difference."""
    return {"different": 1, "differences": [Difference(stage=stage, prefix=BLOCK, **fields)]}


@pytest.mark.parametrize(
    ("owner", "other", "third", "found"),
    [
        ({}, {}, {}, []),
        (
            TOLD,
            lost(node="a"),
            {},
            [("heard", ["b"], "told by a to 10.1.0.254 and not heard; c has it")],
        ),
        (
            TOLD,
            lost(node="a"),
            lost(node="a"),
            [("heard", ["b", "c"], "told by a to 10.1.0.254 and not heard; nobody but its owner has it")],
        ),
        ({}, lost(node="a"), {}, [("heard", ["b"], "not heard; a does not tell it")]),
        (
            TOLD,
            lost(node="a", why="BGPFilter strict rejects it"),
            {},
            [("heard", ["b"], "heard and not taken: BGPFilter strict rejects it")],
        ),
        (
            {**TOLD, **lost("told", peer="10.1.0.254", why="ExaBGP has not acknowledged it")},
            lost(node="a"),
            lost(node="a"),
            [("told", ["a"], "not told to 10.1.0.254: ExaBGP has not acknowledged it")],
        ),
        (
            {},
            lost("kernel", why="the kernel has no route"),
            {},
            [("kernel", ["b"], "not routed: the kernel has no route")],
        ),
        (TOLD, lost(node="gone"), {}, [("heard", ["b"], "not heard; there is no Node gone to tell it")]),
    ],
    ids=["none", "on the way", "nobody has it", "not told", "refused", "pending", "kernel", "no owner"],
)
def test_diff_names_where_a_prefix_was_last_seen(
    cluster: Muslin,
    datastore: str,
    monkeypatch: pytest.MonkeyPatch,
    owner: dict[str, Any],
    other: dict[str, Any],
    third: dict[str, Any],
    found: list[tuple[str, list[str], str]],
) -> None:
    monkeypatch.setattr("cli.bgp_diff.SECOND_LOOK_S", 0.0)
    report(datastore, a=speaks(**owner), b=speaks(**other), c=speaks(**third))
    said = cluster("bgp diff -o json")
    document = json.loads(said.out)
    assert [(each["stage"], each["at"], each["why"]) for each in document["differences"]] == found
    assert said.code == (1 if found else 0)
    assert cluster("bgp diff").code == said.code


def test_diff_of_an_owner_without_a_session(cluster: Muslin, datastore: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.bgp_diff.SECOND_LOOK_S", 0.0)
    report(datastore, a=speaks(session(state="Down"), **TOLD), b=speaks(**lost(node="a")), c=speaks())
    (only,) = json.loads(cluster("bgp diff -o json").out)["differences"]
    assert only["why"] == "not heard; a has no session established to tell it over"


def test_diff_of_a_node_without_a_session(cluster: Muslin, datastore: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.bgp_diff.SECOND_LOOK_S", 0.0)
    report(datastore, a=speaks(**TOLD), b=speaks(session(state="Down"), **lost(node="a")), c=speaks())
    (only,) = json.loads(cluster("bgp diff -o json").out)["differences"]
    assert (only["at"], only["why"]) == (["b"], "not heard; there is no session established to hear it over")


def test_diff_knows_what_it_does_not_know(cluster: Muslin, datastore: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.bgp_diff.SECOND_LOOK_S", 0.0)
    report(datastore, a=speaks(reported=LONG_AGO))
    report(datastore, b=speaks(ready=False, **{**lost(node="a"), "different": 7}))
    said = cluster("bgp diff")
    assert said.code == 1
    assert said.err == "not ready yet, so not compared in full: b\n"
    lines = said.out.splitlines()
    assert lines[1].split()[:3] == [BLOCK, "a", "b"]
    assert "not heard; of a, bgp has been silent for" in lines[1]
    assert lines[2].endswith("and 6 more that the reports do not name")
    assert [line.split()[0] for line in lines[5:]] == ["a", "c"]
    assert lines[6].endswith("its bgp has never reported")


@pytest.mark.parametrize("command", ["bgp routes", "bgp adverts"])
def test_a_question_that_nobody_answers_is_taken_back(cluster: Muslin, datastore: str, command: str) -> None:
    report(datastore, a=speaks(reported=LONG_AGO))
    report(datastore, b=speaks())
    said = cluster(f"{command} --timeout 0.3")
    assert (said.code, said.out) == (1, "")
    dead, deaf, unknown = said.err.splitlines()
    assert dead.startswith("a: bgp has been silent for ")
    assert deaf == "b: its bgp has not answered within 0.3 s; `muslin bgp status` may say why"
    assert unknown == "c: its bgp has never reported; does `muslin node` run there?"
    assert cluster("get caliconodestatuses -o name").out == ""


def test_a_prefix_that_is_none_is_refused(cluster: Muslin) -> None:
    said = cluster("bgp routes 10.244.1.300")
    assert said.code == 1
    assert said.err.startswith("10.244.1.300: ")


def test_drain_of_a_silent_node_changes_nothing(cluster: Muslin, datastore: str) -> None:
    report(datastore, a=speaks(reported=LONG_AGO))
    report(datastore, b=speaks())
    said = cluster("node drain a --wait 0s")
    assert (said.code, said.out) == (1, "")
    assert "bgp has been silent for" in said.err
    assert "(a): it can withdraw nothing; its peers keep its routes" in said.err
    never = cluster("node drain c --wait 0s")
    assert never.err.startswith("bgp on c has never reported, so it can withdraw nothing")
    assert (cluster("node drain z").code, cluster("node drain b --wait soon").code) == (1, 1)
    assert [maintenance(datastore, name) for name in "abc"] == ["", "", ""]


def test_drain_gives_up_after_a_time_and_says_so(cluster: Muslin, datastore: str) -> None:
    report(datastore, b=speaks(problems=["ExaBGP does not start"]))
    said = cluster("node drain b --wait 0s --timeout 0.3")
    assert (said.code, said.out) == (1, "")
    assert said.err == (
        "after 0.3 s bgp on b has not told its peers: ExaBGP does not start. Give the command again to go on\n"
    )
    assert maintenance(datastore, "b") == "GracefulShutdown"
    back = cluster("node uncordon b --timeout 0.3")
    assert back.code == 1
    assert maintenance(datastore, "b") == ""


def maintenance(address: str, name: str) -> str:
    async def read() -> str:
        store = GrpcStore(address)
        try:
            found = await objects.read(store, Node, name)
        finally:
            await store.close()
        assert found is not None
        assert found[0].spec.bgp is not None
        return found[0].spec.bgp.maintenance

    return asyncio.run(read())

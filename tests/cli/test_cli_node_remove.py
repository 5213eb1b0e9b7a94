"""`muslin node remove`: a machine that is gone for good, and everything that was its."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.manifest import encode
from core.resources import FelixStatus, Metadata, Resource, SpeakerStatus
from core.resources.status import FelixState, SpeakerState
from datastore.api import Delete, Put
from datastore.client import GrpcStore
from datastore.ipam.block import stamp
from datastore.ipam.listing.holders import KINDS
from tests.datastore.ipam import ipam_audit_world as w

Muslin = Callable[[str], Any]


def put(address: str, *resources: Resource) -> None:
    async def write() -> None:
        store = GrpcStore(address)
        try:
            await store.txn([Put(each.key, encode(each)) for each in resources])
        finally:
            await store.close()

    asyncio.run(write())


def names(address: str) -> set[str]:
    """What there is, but for pools."""

    async def listed() -> set[str]:
        store = GrpcStore(address)
        try:
            found = await store.list(KINDS | {FelixStatus.KIND, SpeakerStatus.KIND})
        finally:
            await store.close()
        return {f"{each.key.kind.name} {each.key.name}" for each in found.entries if each.key.kind.name != "IPPool"}

    return asyncio.run(listed())


@pytest.fixture
def cluster(muslin: Muslin, datastore: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Muslin]:
    monkeypatch.setattr("cli.ipam_check.SECOND_LOOK_S", 0.0)
    put(datastore, *w.sound().values())
    yield muslin
    for node in ("a", "b"):
        said = muslin(f"node remove {node} --force --yes")
        assert said.code == 0 or "there is no node" in said.err, said


def reports(node: str, ago_s: float) -> tuple[FelixStatus, SpeakerStatus]:
    when = stamp(datetime.now(UTC) - timedelta(seconds=ago_s))
    metadata = Metadata(name=node)
    return (
        FelixStatus(metadata=metadata, status=FelixState(reported=when)),
        SpeakerStatus(metadata=metadata, status=SpeakerState(reported=when)),
    )


def test_a_node_goes_with_all_that_is_its(cluster: Muslin, datastore: str) -> None:
    put(datastore, *reports("b", 3600))
    refused = cluster("delete node b")
    assert refused.code == 1
    assert "if its machine is gone for good, `muslin node remove b`" in refused.err

    said = cluster("node remove b --yes")
    assert said.code == 0, said
    assert [line.split() for line in said.out.splitlines()] == [
        ["WHAT", "NAME", "ADDRESSES"],
        ["endpoint", "shop/b-k8s-pod--c3-eth0", "10.244.0.3"],
        ["handle", "k8s.c3", "10.244.0.3"],
        ["block", "10.244.0.64/26"],
        ["node", "b"],
        ["node/b", "removed"],
    ]
    left = names(datastore)
    assert not [each for each in left if each.endswith(" b") or " b-" in each or "10-244-0-64" in each or "c3" in each]
    assert "Node a" in left
    assert cluster("ipam check").code == 0
    assert "node remove" in cluster("ipam history 10.244.0.3").out


def test_what_others_have_borrowed_of_it_stays_theirs(cluster: Muslin, datastore: str) -> None:
    said = cluster("node remove a --yes -o json")
    assert said.code == 0, said
    assert json.loads(said.out) == {
        "node": "a",
        "endpoints": ["shop/a-k8s-pod--c2-eth0"],
        "handles": [
            {"handle": w.TUNNEL, "addresses": ["10.244.0.1"]},
            {"handle": "k8s.c2", "addresses": ["10.244.0.2", "fd00:10::2"]},
        ],
        "blocks": ["10.244.0.0/26", "fd00:10::/122"],
    }
    assert cluster("ipam check").code == 0
    assert "k8s.c3" in cluster("ipam show --ip 10.244.0.3").out


@pytest.mark.parametrize("agent", [0, 1])
def test_a_node_that_may_live_stays(cluster: Muslin, datastore: str, agent: int) -> None:
    put(datastore, reports("b", 5)[agent])
    before = names(datastore)
    said = cluster("node remove b --yes")
    assert said.code == 1
    assert f"node b may live: {('felix', 'bgp')[agent]} reported" in said.err
    assert "--force" in said.err
    assert names(datastore) == before
    assert cluster("node remove b --yes --force").code == 0


def test_a_clock_that_says_nothing_is_a_sign_of_life(cluster: Muslin, datastore: str) -> None:
    put(datastore, reports("b", -3600)[0])
    said = cluster("node remove b --yes")
    assert said.code == 1
    assert "whether felix lives cannot be told" in said.err


def test_a_node_that_has_just_given_an_address_stays(cluster: Muslin, datastore: str) -> None:
    put(datastore, w.handle("k8s.c3", "b", {"10.244.0.3": w.A}, since=stamp(datetime.now(UTC))))
    said = cluster("node remove b --yes")
    assert said.code == 1
    assert "k8s.c3 was given its addresses at" in said.err


def test_nothing_goes_unasked(cluster: Muslin, datastore: str) -> None:
    before = names(datastore)
    said = cluster("node remove b")
    assert said.code == 1
    assert "shop/b-k8s-pod--c3-eth0" in said.out, "what would go is shown"
    assert "nothing has been removed; --yes removes all of this" in said.err
    assert names(datastore) == before


def test_a_node_that_is_not_there(cluster: Muslin, datastore: str) -> None:
    said = cluster("node remove c --yes")
    assert (said.code, said.err) == (1, "there is no node c, and nothing is its; `muslin get nodes` lists them\n")


def test_what_another_node_uses_stops_it(cluster: Muslin, datastore: str) -> None:
    thief = w.endpoint("thief", "a", "c9", "10.244.0.3")
    put(datastore, thief)
    before = names(datastore)
    said = cluster("node remove b --yes --force")
    assert said.code == 1
    assert "uses what k8s.c3 holds" in said.err
    assert names(datastore) == before

    async def away() -> None:
        store = GrpcStore(datastore)
        try:
            await store.txn([Delete(thief.key)])
        finally:
            await store.close()

    asyncio.run(away())

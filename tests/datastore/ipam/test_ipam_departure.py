"""What goes with a node that is gone for good: all that is its, and nothing that anybody else may use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.manifest import encode
from core.names import Key
from core.resources import IPAMBlock, IPAMConfiguration, Metadata, Node, Resource
from core.resources.ipam import IPAMConfigurationSpec
from datastore.api import Entry, Listing
from datastore.ipam.auditing.audit import audit
from datastore.ipam.collecting.departure import Departure, departure, next_step
from datastore.ipam.listing.holders import Holdings
from datastore.ipam.listing.uses import Uses
from datastore.ipam.writing import operations
from datastore.sqlite import SqliteStore
from tests.datastore.ipam import ipam_audit_world as w


async def removed(store: SqliteStore, node: str) -> Departure:
    """Carry it out, and the Node's end; what was there at first."""
    first = departure(Uses(await w.holdings(store)), node)
    going, seen = first, await w.holdings(store)
    for _ in range(1000):
        if going.over:
            break
        assert not going.obstacles
        step = next_step(going, seen, w.NOW)
        assert 0 < len(step.changes) <= 120
        await store.txn(operations(step.changes), step.guards)
        seen = await w.holdings(store)
        going = departure(Uses(seen), node)
    assert going.over
    await w.delete(store, w.node(node))
    return first


async def blocks(store: SqliteStore) -> dict[str, IPAMBlock]:
    seen = await w.holdings(store)
    return {held.resource.spec.cidr: held.resource for held in seen.of(IPAMBlock).values()}


async def test_a_node_goes_with_its_pods_its_tunnel_and_its_blocks(tmp_path: Path) -> None:
    store = await w.stored(tmp_path, w.sound())
    first = await removed(store, "a")
    assert [each.text for each in first.holders] == [w.TUNNEL, "k8s.c2"]
    assert [each.resource.metadata.name for each in first.endpoints] == ["a-k8s-pod--c2-eth0"]
    left = await blocks(store)
    assert left.keys() == {w.A, w.B}
    assert left[w.A].spec.affinity == "", "b has an address of it, so it stays and is nobody's"
    assert (left[w.A].spec.allocations, left[w.A].spec.borrowers) == ({"10.244.0.3": "k8s.c3"}, {"10.244.0.3": "b"})
    assert left[w.B].spec.node == "b"
    assert audit(await w.holdings(store), w.NOW).findings == ()


async def test_what_it_has_borrowed_is_given_back_and_an_empty_block_goes(tmp_path: Path) -> None:
    store = await w.stored(tmp_path, w.sound())
    await removed(store, "b")
    left = await blocks(store)
    assert left.keys() == {w.A, w.V6}
    assert left[w.A].spec.borrowers == {}
    assert left[w.A].spec.freed.keys() == {"10.244.0.3"}
    assert audit(await w.holdings(store), w.NOW).findings == ()


async def test_a_block_that_rests_keeps_its_memory_and_becomes_nobodys(tmp_path: Path) -> None:
    spec = IPAMConfigurationSpec(ip_cooldown_seconds=1200)
    settings = IPAMConfiguration(metadata=Metadata(name="default"), spec=spec)
    resting = w.block(w.B, "b", freed={"10.244.0.70": w.JUST_NOW})
    store = await w.stored(tmp_path, w.changed(settings, resting))
    await removed(store, "b")
    left = (await blocks(store))[w.B]
    assert (left.spec.affinity, left.spec.freed.keys()) == ("", {"10.244.0.70"})


async def test_a_claim_goes_whatever_its_name_and_whosever_the_block(tmp_path: Path) -> None:
    odd = w.claim("b", "10.244.9.0/26")
    named = type(odd)(metadata=Metadata(name="something"), spec=odd.spec)
    store = await w.stored(tmp_path, w.changed(named, w.claim("b", w.A)))
    await removed(store, "b")
    assert {each.resource.spec.node for each in departure(Uses(await w.holdings(store)), "a").claims} == {"a"}
    assert departure(Uses(await w.holdings(store)), "b").over


async def test_two_hundred_pods_go_in_transactions_that_etcd_takes(tmp_path: Path) -> None:
    texts = {f"10.244.1.{each}": f"k8s.d{each}" for each in range(200)}
    pods: list[Resource] = [w.block("10.244.1.0/24", "b", texts), w.claim("b", "10.244.1.0/24")]
    for address, text in texts.items():
        container = text.partition(".")[2]
        pods.append(w.handle(text, "b", {address: "10.244.1.0/24"}))
        pods.append(w.endpoint(f"pod-{container}", "b", container, address))
    store = await w.stored(tmp_path, w.changed(*pods, gone=[w.block(w.B, "b"), w.claim("b", w.B)]))
    first = await removed(store, "b")
    assert (len(first.endpoints), len(first.holders)) == (201, 201)
    assert (await blocks(store)).keys() == {w.A, w.V6}


def seen_of(state: Mapping[Key, Resource], raw: Mapping[Key, bytes] = {}) -> Holdings:
    entries = [Entry(key, raw.get(key) or encode(state[key]), 1) for key in {**state, **raw}]
    return Holdings(Listing(1, tuple(entries)))


def test_an_address_that_another_node_uses_stops_it() -> None:
    state = w.changed(w.endpoint("thief", "a", "c9", "10.244.0.3"))
    found = departure(Uses(seen_of(state)), "b").obstacles
    assert found == (
        "WorkloadEndpoint shop/a-k8s-thief-eth0 of node a uses what k8s.c3 holds; `muslin ipam check` says more",
    )
    tunnel: Node = w.node("a", tunnel="10.244.0.3")
    assert len(departure(Uses(seen_of(w.changed(tunnel))), "b").obstacles) == 1


def test_what_cannot_be_read_stops_it() -> None:
    block, claim = w.block(w.A, "a"), w.claim("a", w.A)
    for broken in (block, claim, w.endpoint("pod-c3", "b", "c3"), w.handle("k8s.c3", "b", {})):
        found = departure(Uses(seen_of(w.sound(), {broken.key: b"{"})), "b")
        assert "cannot be read" in found.obstacles[0], broken.key
        assert [each.text for each in found.holders] == ["k8s.c3"]

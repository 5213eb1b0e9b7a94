"""What garbage collection takes and, mostly, what it leaves alone. Pure."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address

import pytest
from ipam_collect_world import (
    B0,
    GRACE,
    NOW,
    World,
    affinity,
    bare_handle,
    block,
    endpoint,
    handle,
    node,
    pool,
    removals,
    world,
    writes,
)
from msgspec.structs import replace

from core.names import Key, workload_interface
from core.resources import IPAMBlock, IPAMRecord, Metadata, Node, WorkloadEndpoint
from core.resources.network import NodeAddress, NodeBGPSpec, NodeSpec
from datastore.ipam.collecting.collect import MOST_PATIENCE, Collection, confirm, observe
from datastore.ipam.model import Write

WEB = workload_interface("shop", "web")


def leaked() -> World:
    """A container's address that nothing speaks for, in a block that stays."""
    return world(pool(), node("n1"), block(B0, _7="net.c1"), affinity(B0), handle("c1", "10.0.0.7", B0))


# Two observations


def test_a_leak_is_due_when_it_was_seen_twice_a_grace_apart() -> None:
    seen = leaked()
    assert seen.scan(100.0) == set()
    assert seen.scan(100.0 + GRACE - 0.1) == set()
    assert seen.scan(100.0 + GRACE) == {"container c1"}


def test_an_address_is_collected_by_every_spelling_and_left_alone_by_two() -> None:
    """Nobody of ours writes them so; one that is there twice may be the other's."""
    six = "fd00::/122"
    leaks = (handle("c1", "fd00::7", six), handle("c2", "fd00::7", six, pod="db"))
    odd = block(six)
    one = replace(odd, spec=replace(odd.spec, allocations={"FD00::7": "net.c1"}))
    seen = world(pool(), node("n1"), one, leaks[0])
    seen.scan(100.0)
    assert "container c1" in seen.scan(100.0 + GRACE)
    two = replace(odd, spec=replace(odd.spec, allocations={"FD00::7": "net.c1", "fd00::7": "net.c2"}))
    seen = world(pool(), node("n1"), two, *leaks)
    seen.scan(100.0)
    assert seen.scan(100.0 + GRACE) == set()


def test_one_observation_is_not_two_even_without_a_grace() -> None:
    found = tuple(leaked().candidates().values())
    collection, due = observe(Collection(), found, 5.0, 0.0)
    assert due == ()
    assert observe(collection, found, 5.0, 0.0)[1] == found


def test_one_long_silence_is_not_two_observations_of_something_else() -> None:
    seen = leaked()
    seen.scan(0.0)
    seen.put(handle("c1", "10.0.0.7", B0))  # a second ADD writes it again
    assert seen.scan(GRACE) == set()
    assert seen.scan(2 * GRACE - 0.1) == set()
    assert seen.scan(2 * GRACE) == {"container c1"}


def test_a_user_in_between_begins_again() -> None:
    seen = leaked()
    seen.scan(0.0)
    seen.interfaces.add(WEB)
    assert seen.scan(GRACE / 2) == set()
    seen.interfaces.clear()
    assert seen.scan(GRACE) == set()
    assert seen.scan(2 * GRACE) == {"container c1"}


def test_the_steady_clock_decides_and_not_the_time_of_day() -> None:
    seen = leaked()
    seen.scan(0.0)
    seen.now = NOW + timedelta(days=400)
    assert seen.scan(GRACE - 1) == set()
    seen.now = NOW - timedelta(days=400)
    assert seen.scan(GRACE) == {"container c1"}


def test_what_changed_since_it_was_due_is_not_confirmed() -> None:
    seen = leaked()
    due = tuple(seen.candidates().values())
    assert {each.subject for each in confirm(due, seen.candidates().values())} == {"container c1"}
    seen.put(handle("c1", "10.0.0.7", B0))
    assert confirm(due, seen.candidates().values()) == ()


def test_the_step_is_the_later_looks() -> None:
    seen = leaked()
    due = tuple(seen.candidates().values())
    seen.put(block(B0, _7="net.c1", _8="net.c2"))
    (confirmed,) = confirm(due, seen.candidates().values())
    written = writes(confirmed.step)["IPAMBlock 10-0-0-0-26"]
    assert isinstance(written, IPAMBlock)
    assert written.spec.allocations == {"10.0.0.8": "net.c2"}


# Who is a user


def test_what_goes_goes_in_one_step_that_compares_with_what_was_seen() -> None:
    seen = leaked()
    step = seen.candidates()["container c1"].step
    assert removals(step) == {handle("c1", "10.0.0.7", B0).key: seen.entries[handle("c1", "10.0.0.7", B0).key].revision}
    compared = {change.resource.key: change.if_revision for change in step.changes if isinstance(change, Write)}
    assert compared[block(B0).key] == seen.entries[block(B0).key].revision
    (record,) = (each for each in writes(step).values() if isinstance(each, IPAMRecord))
    assert (record.spec.address, record.spec.handle_id, record.spec.since) == (
        "10.0.0.7",
        "net.c1",
        "2026-01-31T10:00:00Z",
    )


@pytest.mark.parametrize(
    "user",
    [
        pytest.param(endpoint("c1", "10.0.0.9", pod="api"), id="its-container-under-another-name"),
        pytest.param(endpoint("c9", "10.0.0.7", pod="api"), id="its-address-in-another-container"),
        pytest.param(endpoint("", "10.0.0.7", pod="api"), id="its-address-by-hand"),
        pytest.param(endpoint("c1", "10.0.0.7", owner="n2"), id="on-another-node"),
        pytest.param(endpoint("c1", "10.0.0.7", owner="nowhere"), id="on-a-node-that-is-gone"),
        pytest.param(endpoint("c1", "10.0.0.7", orchestrator="openstack"), id="of-another-orchestrator"),
    ],
)
def test_any_endpoint_that_speaks_for_it_keeps_it(user: WorkloadEndpoint) -> None:
    seen = leaked().put(user)
    seen.interfaces.add(workload_interface("shop", "api"))
    assert seen.due() == set()


def test_a_dead_endpoint_of_another_container_goes_first_and_alone() -> None:
    seen = leaked().put(endpoint("c9", "10.0.0.7", pod="api"))
    assert seen.due() == {"container c9"}
    assert set(removals(seen.candidates()["container c9"].step)) == {endpoint("c9", "10.0.0.7", pod="api").key}
    seen.drop(endpoint("c9", "10.0.0.7", pod="api"))
    assert seen.due() == {"container c1"}


def test_its_interface_keeps_it() -> None:
    seen = leaked()
    seen.interfaces.add(WEB)
    assert seen.due() == set()


def test_the_pods_next_container_does_not_keep_it() -> None:
    seen = leaked().put(block(B0, _7="net.c1", _8="net.c2"), handle("c2", "10.0.0.8", B0), endpoint("c2", "10.0.0.8"))
    seen.interfaces.add(WEB)
    assert seen.due() == {"container c1"}


def test_what_the_agent_works_on_is_in_use() -> None:
    seen = leaked()
    seen.busy.add("c1")
    assert seen.due() == set()


def test_another_nodes_leak_is_the_other_nodes_affair() -> None:
    seen = world(pool(), node("n1"), node("n2"), block(B0, "n2", _7="net.c1"), handle("c1", "10.0.0.7", B0, owner="n2"))
    assert seen.due(1 + MOST_PATIENCE) == set()


def test_a_borrowed_address_is_the_borrowers_affair() -> None:
    borrowed = block(B0, "n2", borrowers={"10.0.0.7": "n1"}, _7="net.c1")
    seen = world(pool(), node("n1"), node("n2"), borrowed, handle("c1", "10.0.0.7", B0))
    assert seen.due() == {"container c1"}
    written = writes(seen.candidates()["container c1"].step)["IPAMBlock 10-0-0-0-26"]
    assert isinstance(written, IPAMBlock)
    assert not written.spec.borrowers
    assert not written.spec.allocations


@pytest.mark.parametrize(
    "text",
    ["k8s-pod-network.shop.web", "somebody", "lb-0123abcd", "windows-reserved-ipam-handle", ".c1", "net.", "vm.a.b"],
)
@pytest.mark.parametrize("with_object", [True, False])
def test_a_handle_of_a_form_that_we_do_not_make_is_in_use(text: str, *, with_object: bool) -> None:
    seen = world(pool(), node("n1"), block(B0, _7=text))
    if with_object:
        seen.put(bare_handle(text, "10.0.0.7", B0))
    assert seen.due() == set()


def test_a_handle_that_does_not_end_in_its_container_is_in_use() -> None:
    odd = handle("c1", "10.0.0.7", B0)
    odd = type(odd)(
        metadata=odd.metadata, spec=type(odd.spec)(handle_id="net.c1", addresses={}, node="n1", container="c2")
    )
    seen = world(pool(), node("n1"), block(B0, _7="net.c1"), odd)
    assert seen.due() == set()


def test_a_handle_of_no_known_node_is_in_use() -> None:
    seen = world(pool(), node("n1"), block(B0, "", _7="net.c1"), handle("c1", "10.0.0.7", B0, owner=""))
    assert seen.due(1 + MOST_PATIENCE) == set()


def test_two_nodes_that_claim_one_container_settle_nothing() -> None:
    seen = leaked().put(node("n2"), handle("c1", "10.0.0.9", B0, owner="n2", network="other"))
    assert seen.due() == set()


# Whose kernel it is


@pytest.mark.parametrize(
    "spec",
    [
        NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.0.2.7/24", ipv6_address="2001:db8::7/64")),
        NodeSpec(addresses=[NodeAddress(address="2001:db8::7"), NodeAddress(address="192.0.2.8", type="ExternalIP")]),
    ],
)
def test_a_host_that_is_not_the_node_says_nothing_of_its_pods(spec: NodeSpec) -> None:
    seen = wiped().put(Node(metadata=Metadata(name="n1"), spec=spec))
    seen.addresses = {ip_address("192.0.2.8")}
    assert seen.due() == set()
    assert "is it that node?" in seen.scene().elsewhere
    seen.addresses.add(ip_address("2001:db8::7"))
    assert seen.due() == {"container c1"}


def test_a_node_that_says_no_address_of_its_own_is_believed() -> None:
    outside = [NodeAddress(address="198.51.100.7", type="ExternalIP"), NodeAddress(address="10.9.0.0/24")]
    seen = wiped().put(Node(metadata=Metadata(name="n1"), spec=NodeSpec(addresses=outside)))
    assert seen.due() == {"container c1"}


def test_who_is_no_node_or_an_unreadable_one_judges_no_pods() -> None:
    seen = wiped()
    seen.spoil(node("n1"))
    assert seen.due() == set()
    seen.drop(node("n1"))
    assert seen.due(1 + MOST_PATIENCE) == set()


# Without a handle object


def test_an_allocation_without_a_handle_object_goes_too() -> None:
    seen = world(pool(), node("n1"), block(B0, _7="net.c1", _8="net.c2"), handle("c2", "10.0.0.8", B0, pod="api"))
    seen.interfaces.add(workload_interface("shop", "api"))
    seen.scan(0.0)
    seen.put(block(B0, _7="net.c1", _8="net.c2", _9="net.c3"), handle("c3", "10.0.0.9", B0, pod="api"))  # a busy block
    assert seen.scan(GRACE) == {"container c1"}


def test_an_allocation_whose_handle_cannot_be_read_stays() -> None:
    seen = leaked()
    seen.spoil(handle("c1", "10.0.0.7", B0))
    assert seen.due() == set()


def test_a_handle_without_an_address_goes() -> None:
    seen = world(pool(), node("n1"), block(B0), handle("c1", "10.0.0.7", B0))
    assert seen.due() == {"container c1"}
    assert writes(seen.candidates()["container c1"].step) == {}


# An endpoint whose wire is gone


def wiped() -> World:
    return leaked().put(endpoint("c1", "10.0.0.7"))


def test_a_container_whose_interface_is_gone_goes_with_all_that_it_has() -> None:
    seen = wiped()
    assert seen.due() == {"container c1"}
    step = seen.candidates()["container c1"].step
    assert set(removals(step)) == {handle("c1", "10.0.0.7", B0).key, endpoint("c1", "10.0.0.7").key}
    written = writes(step)["IPAMBlock 10-0-0-0-26"]
    assert isinstance(written, IPAMBlock)
    assert written.spec.allocations == {}
    assert list(written.spec.freed) == ["10.0.0.7"]


def test_an_endpoint_that_is_written_again_begins_again() -> None:
    seen = wiped()
    seen.scan(0.0)
    seen.put(endpoint("c1", "10.0.0.7"))
    assert seen.scan(GRACE) == set()


def test_an_endpoint_without_a_container_is_nobodys_to_judge() -> None:
    seen = world(pool(), node("n1"), block(B0, _7="k8s-pod-network.shop.web"), endpoint("", "10.0.0.7"))
    assert seen.due() == set()


# What nobody can read


def test_an_unreadable_endpoint_keeps_what_it_may_speak_for() -> None:
    seen = wiped()
    seen.spoil(endpoint("c1", "10.0.0.7"))
    assert seen.due() == set()


def test_an_unreadable_endpoint_of_another_namespace_keeps_nothing_else() -> None:
    seen = leaked()
    seen.raw(Key(WorkloadEndpoint.KIND, "elsewhere", "n1-k8s-x-eth0"), b'{"spec": {"ipNetworks": ["10.0.0.9/')
    assert seen.due() == {"container c1"}
    seen.raw(Key(WorkloadEndpoint.KIND, "elsewhere", "n1-k8s-x-eth0"), b'{"spec": {"containerID": "c1"')
    assert seen.due() == set()


def test_an_unreadable_block_keeps_the_handle_that_names_it() -> None:
    seen = leaked()
    seen.spoil(block(B0))
    assert seen.due() == set()


def test_an_unreadable_node_is_there() -> None:
    seen = world(pool(), node("n1"), node("n2"), block(B0, "n2"), affinity(B0, "n2"))
    seen.spoil(node("n2"))
    assert seen.due(1 + MOST_PATIENCE) == set()


def test_a_block_in_no_readable_pool_stays_while_a_pool_cannot_be_read() -> None:
    seen = world(pool(), node("n1"), block(B0), affinity(B0))
    seen.spoil(pool())
    assert seen.due() == set()

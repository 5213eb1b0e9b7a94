"""Garbage collection on clusters made by chance: what a naive reader would call in use stays, and leaks do not.

Every step is carried out as a store would, comparing revisions, in any order, by two collectors that saw the same.
"""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ipam_collect_world import (
    GRACE,
    World,
    affinity,
    bare_handle,
    block,
    carried_out,
    endpoint,
    handle,
    node,
    pool,
    world,
)

from core.manifest import decode
from core.names import workload_interface
from core.resources import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, R, WorkloadEndpoint
from datastore.ipam.collecting.collect import Candidate, Collection, observe

CIDRS = [f"10.0.0.{number * 8}/29" for number in range(4)]
NODES = ["n1", "n2", "gone"]


@st.composite
def clusters(draw: st.DrawFn) -> World:
    """Four blocks of three nodes, one of them deleted, with pods in every state of being there and not."""
    made = world(pool(ends=draw(st.booleans())), node("n1"), node("n2"), node("n3"))
    tunnels: set[str] = set()
    for at, cidr in enumerate(CIDRS):
        owner = draw(st.sampled_from([*NODES, ""]))
        held: dict[str, str] = {}
        borrowers: dict[str, str] = {}
        for number in range(draw(st.integers(0, 3))):
            user = draw(st.sampled_from(NODES))
            name = f"{at}x{number}"
            address = str(ip_network(cidr)[number])
            form = draw(st.sampled_from(["container", "container", "container", "bare", "lab", "tunnel"]))
            text = {"container": f"net.{name}", "lab": f"net.shop.{name}"}.get(form, f"odd{name}")
            if form == "tunnel" and user not in tunnels:
                tunnels.add(user)
                text = f"ipip-tunnel-addr-{user}"
            held[f"_{number}"] = text
            if user != owner:
                borrowers[address] = user
            if form == "container" and draw(st.booleans()):
                made.put(handle(name, address, cidr, pod=name, owner=user))
            elif form == "bare" and draw(st.booleans()):
                made.put(bare_handle(text, address, cidr, user))
            if draw(st.booleans()):
                made.put(endpoint(draw(st.sampled_from([name, ""])), address, pod=name, owner=user))
            if draw(st.booleans()):
                made.interfaces.add(workload_interface("shop", name))
        made.put(block(cidr, owner, borrowers=borrowers, **held))
        if owner and draw(st.booleans()):
            made.put(affinity(cidr, owner))
    return made


def every(seen: World, cls: type[R]) -> list[R]:
    found = [decode(entry.key, entry.value) for entry in seen.entries.values() if entry.key.kind == cls.KIND]
    return [each for each in found if isinstance(each, cls)]


def allocations(seen: World) -> dict[str, str]:
    return {address: text for each in every(seen, IPAMBlock) for address, text in each.spec.allocations.items()}


def needed(seen: World) -> set[str]:
    """The addresses that somebody may use, by the plainest rules there are."""
    interfaces = seen.interfaces
    users = {user for each in every(seen, IPAMBlock) for user in [each.spec.node, *each.spec.borrowers.values()]}
    assert users <= {*NODES, ""}
    kept: set[str] = set()
    for each in every(seen, IPAMBlock):
        for address, text in each.spec.allocations.items():
            container = text.removeprefix("net.") if text.startswith("net.") and text.count(".") == 1 else ""
            tunnel = text.startswith("ipip-tunnel-addr-") and text.endswith("-gone")
            if not container and not tunnel:
                kept.add(address)
            user = each.spec.borrowers.get(address, each.spec.node)
            if user == "n2":
                kept.add(address)
            has_object = any(known.spec.handle_id == text for known in every(seen, IPAMHandle))
            if user == "n1" and has_object and workload_interface("shop", container) in interfaces:
                kept.add(address)
    for one in every(seen, WorkloadEndpoint):
        if one.spec.node != "n1" or not one.spec.container_id or one.spec.interface_name in interfaces:
            kept |= {str(address) for address in one.spec.addresses}
    return kept


def due(seen: World, collector: str) -> list[Candidate]:
    """What a collector on that node would do in the end."""
    kernel = seen.interfaces
    seen.node, seen.interfaces = collector, kernel if collector == "n1" else set()
    try:
        found = list(seen.candidates().values())
        mine, _ = observe(Collection(), found, 0.0, GRACE)
        return list(observe(mine, found, 100 * GRACE, GRACE)[1])
    finally:
        seen.node, seen.interfaces = "n1", kernel


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters(), st.randoms(use_true_random=False))
def test_nothing_in_use_is_freed_and_no_leak_stays(seen: World, chance) -> None:  # type: ignore[no-untyped-def]
    kept = {address: text for address, text in allocations(seen).items() if address in needed(seen)}
    for _ in range(12):
        steps = [*due(seen, "n1"), *due(seen, "n3")]
        if not steps:
            break
        chance.shuffle(steps)
        done = [each for each in steps if carried_out(seen, each.step)]
        assert done, [each.subject for each in steps]
        assert kept.items() <= allocations(seen).items()
    assert not due(seen, "n1")
    left = allocations(seen)
    assert left == {address: text for address, text in left.items() if address in needed(seen)}
    for each in every(seen, IPAMHandle):
        assert all(left.get(address) == each.spec.handle_id for address in each.spec.addresses)
    owners = {each.spec.cidr: each.spec.node for each in every(seen, IPAMBlock)}
    assert "gone" not in owners.values()
    assert all(owners[claim.spec.cidr] == claim.spec.node for claim in every(seen, BlockAffinity))
    if every(seen, IPPool)[:1] and every(seen, IPPool)[0].terminating:
        assert all(each.spec.allocations for each in every(seen, IPAMBlock))
    if not every(seen, IPPool):
        assert not owners

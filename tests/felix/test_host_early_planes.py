"""The planes before NAT and before conntrack, and what marks carry between planes, on a real kernel."""

from __future__ import annotations

import contextlib
import re

import pytest
from msgspec import structs

from core.nftables import join
from core.resources.policy import Action, Rule
from felix.desired import desired
from linux.conntrack import Conntrack
from linux.nft import NftDriver
from linux.nft_objects import flatten
from policy.keep import SHIFT
from policy.outcomes import ACCEPTED
from tests.felix.cluster import facts, pod, snapshot
from tests.felix.guarded import (
    ANY,
    FAR,
    FAR6,
    HOST6,
    OUTSIDE6,
    Guarded,
    Servers,
    hep,
    others_marks,
    passed,
    policy,
    refused,
    tcp,
)
from tests.felix.host import HOST, OUTSIDE, ip, nft, says
from tests.felix.one_node import STATE

pytestmark = pytest.mark.kernel


async def test_before_anybody_translates_it(node: Guarded) -> None:
    """What the host lets in early its other planes let pass; its pods still judge it."""
    outside, web = node.outside, node.web
    nft("add", "table", "ip", "lb")
    nft("add chain ip lb pre { type nat hook prerouting priority -100; }")
    nft(f"add rule ip lb pre ip daddr {HOST} tcp dport {{ 8080, 8081 }} dnat to 10.0.0.1:80")
    await node.write(hep("up", "eth0"), policy("host", "host == 'up'", ingress=[], egress=[], apply_on_forward=True))
    await node.start()
    async with Servers() as servers:
        await servers.at(web, 80, "10.0.0.1")
        for port in (22, 82):
            await servers.at(node.here, port, HOST, HOST6)
        lb = [(outside, HOST, 8080), (outside, HOST, 8081)]
        await refused(*lb)
        early = policy(
            "early", "host == 'up'", [tcp(8080), tcp(82)], pre_dnat=True, apply_on_forward=True, types=["Ingress"]
        )
        await node.write(early)
        await passed(lb[0], (outside, HOST, 82), (outside, HOST6, 82))
        await refused(lb[1])
        await node.remove(policy("host", "host == 'up'"))
        await passed(lb[1])
        await servers.at(outside, 179, OUTSIDE, OUTSIDE6)
        everything = Rule(action=Action.DENY)
        await node.write(structs.replace(early, spec=structs.replace(early.spec, ingress=[everything])))
        await passed((outside, HOST, 22), (node.here, OUTSIDE, 179), (node.here, OUTSIDE6, 179))
        await refused(*lb)
        await node.write(early, pod("web", "10.0.0.1", "fd00::1", profiles=("absent",)))
        await refused(*lb)


async def test_what_the_host_sends_is_judged_where_it_really_goes(node: Guarded) -> None:
    """Both connections are bound for eth0 before they are translated."""
    nft("add", "table", "ip", "lb")
    nft("add chain ip lb out { type nat hook output priority -100; }")
    nft(f"add rule ip lb out ip daddr 192.0.2.1 tcp dport 80 dnat to {FAR}:80")
    nft(f"add rule ip lb out ip daddr 192.0.2.2 tcp dport 80 dnat to {OUTSIDE}:80")
    await node.write(hep("other", "eth1"))
    await node.start()
    async with Servers() as servers:
        await servers.at(node.far, 80, FAR)
        await servers.at(node.outside, 80, OUTSIDE)
        ways = [(node.here, "192.0.2.1", 80), (node.here, "192.0.2.2", 80)]
        await refused(ways[0])
        await passed(ways[1])
        await node.write(policy("out", "host == 'other'", egress=[tcp(80)]))
        await passed(*ways)


async def test_without_a_trace_in_conntrack(node: Guarded) -> None:
    """Nobody remembers who began: answers need a rule of their own."""
    here, outside = node.here, node.outside
    fields = {"do_not_track": True, "apply_on_forward": True}
    answers = tcp(80, source=True)
    await node.write(hep("up", "eth0"), policy("half", "host == 'up'", ingress=[tcp(80)], **fields))
    await node.start()
    async with Servers() as servers:
        for port in (22, 80, 81):
            await servers.at(here, port, HOST, HOST6)
        for port in (80, 179):
            await servers.at(outside, port, OUTSIDE, OUTSIDE6)
        ways = [(outside, HOST, 80), (outside, HOST6, 80)]
        await refused(*ways)
        await node.write(policy("half", "host == 'up'", ingress=[tcp(80)], egress=[answers], **fields))
        await passed(*ways, (outside, HOST, 22))
        await refused((outside, HOST, 81))
        for address in (HOST, HOST6):
            assert await says(await outside.connect(address, 80), b"untracked") == b"untracked"
        await outside.connect(HOST, 22)
        with Conntrack() as table:
            ports = {flow.original.dport for flow in table.flows()}
        assert 22 in ports
        assert 80 not in ports
        everything = Rule(action=Action.DENY)
        await node.write(policy("half", "host == 'up'", [everything], [everything], **fields))
        for namespace in ("", outside.namespace):
            ip(*(("-n", namespace) if namespace else ()), "neigh", "flush", "dev", "eth0")
        await passed((outside, HOST, 22), (outside, HOST6, 22), (here, OUTSIDE, 179), (here, OUTSIDE6, 179))
        await refused(*ways, (here, OUTSIDE, 80))


async def test_the_mark_of_others_lives_through_every_plane(node: Guarded) -> None:
    here, outside, far = node.here, node.outside, node.far
    all_planes = (
        policy("raw", "host == 'up'", [tcp(90)], [tcp(90, source=True)], do_not_track=True, apply_on_forward=True),
        policy("pre", "host == 'up'", [tcp(91)], pre_dnat=True, apply_on_forward=True, types=["Ingress"]),
        policy("fw", "host == 'up'", [tcp(92)], [tcp(92)], apply_on_forward=True),
    )
    await node.write(hep("up", "eth0"), *all_planes)
    await node.start()
    with others_marks("input", "forward", "postrouting"):
        async with Servers() as servers:
            for port in (90, 91, 92):
                await servers.at(here, port, HOST, HOST6)
            await servers.at(far, 92, FAR, FAR6)
            await servers.at(outside, 92, OUTSIDE, OUTSIDE6)
            ways = [(outside, address, port) for address in (HOST, HOST6) for port in (90, 91, 92)]
            ways += [
                (outside, FAR, 92),
                (outside, FAR6, 92),
                (far, OUTSIDE, 92),
                (here, OUTSIDE, 92),
                (here, OUTSIDE6, 92),
            ]
            await passed(*ways)
        listed = nft("list", "counters", "table", "inet", "others")
        seen = {name: int(packets) for name, packets in re.findall(r"counter (\S+) \{\s*packets (\d+)", listed)}
        assert all(seen[f"{hook}-kept"] > 0 for hook in ("input", "forward", "postrouting"))
        assert [seen[f"{hook}-lost"] for hook in ("input", "forward", "postrouting")] == [0, 0, 0]


async def test_no_packet_brings_the_mark_along(node: Guarded) -> None:
    accepted = ACCEPTED << SHIFT
    await node.write(hep("up", "eth0"))
    await node.start()
    async with Servers() as servers:
        await servers.at(node.here, 80, HOST, HOST6)
        await servers.at(node.outside, 80, OUTSIDE)
        await servers.at(node.outside, 179, OUTSIDE)
        with others_marks(mark=accepted):
            await refused((node.outside, HOST, 80), (node.outside, HOST6, 80), (node.here, OUTSIDE, 80))
            await passed((node.here, OUTSIDE, 179))


async def test_what_is_read_back_is_what_was_wanted(node: Guarded) -> None:
    """Every plane, an endpoint of each sort, and prefixes that a pod may borrow: nothing is written twice."""
    web = pod("web", "10.0.0.1", "fd00::1")
    lent = structs.replace(web, spec=structs.replace(web.spec, allow_spoofed_source_prefixes=["10.77.0.0/24", "::/0"]))
    state = (
        hep("up", "eth0"),
        hep("rest", "*"),
        policy("raw", "all()", [ANY], [ANY], do_not_track=True, apply_on_forward=True),
        policy("pre", "all()", [ANY], pre_dnat=True, apply_on_forward=True, types=["Ingress"]),
        policy("fw", "all()", [ANY], [tcp(80, nets=["10.0.0.0/8"])], apply_on_forward=True),
        lent,
    )
    await node.write(*state)
    await node.start()
    wanted = desired(snapshot((*STATE, *state)), facts(), node.config)
    with contextlib.closing(NftDriver()) as rules:
        assert dict(await rules.read()) == dict(flatten(join(*wanted.nft.values())))

"""Host endpoints on a real kernel: two uplinks, two pods, both families, packets that arrive or do not."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
from msgspec import structs

from core.nftables import join
from core.resources.network import ProtoPort
from core.resources.policy import Action, EntityRule, Rule
from felix.desired import desired
from linux import netns
from linux.conntrack import Conntrack
from linux.nft import NftDriver
from linux.nft_objects import flatten
from policy.keep import SHIFT
from policy.outcomes import ACCEPTED
from tests.felix.cluster import facts, felix, pod, snapshot
from tests.felix.guarded import (
    ANY,
    FAR,
    FAR6,
    HERE,
    HERE6,
    HOST6,
    OUTSIDE6,
    Guarded,
    guarded,
    hep,
    open_profile,
    others_marks,
    policy,
    second_uplink,
    tcp,
)
from tests.felix.host import HOST, OUTSIDE, Host, Place, first_datagram, ip, nft, says, until
from tests.felix.one_node import STATE

pytestmark = pytest.mark.kernel


@pytest.fixture
async def node(real_host: Host, tmp_path: Path) -> AsyncIterator[Guarded]:
    async with guarded(real_host, tmp_path) as made:
        yield made


ANY_FROM_PODS = Rule(action=Action.ALLOW, source=EntityRule(selector="app == 'web'", namespace_selector="all()"))

Way: TypeAlias = tuple[Place, str, int]
"""Who connects, to where, at which TCP port."""


class Servers(AsyncExitStack):
    """Echo servers, closed together."""

    async def at(self, place: Place, port: int, *addresses: str) -> None:
        for address in addresses:
            await self.enter_async_context(place.echo(port, address))


async def passed(*ways: Way) -> None:
    """Every one of these is reached; a busy machine has time for it."""
    opened = await asyncio.gather(*(place.connect(address, port) for place, address, port in ways))
    for each in opened:
        each.close()


async def refused(*ways: Way) -> None:
    """None of these is reached."""
    found = await asyncio.gather(*(place.reaches(address, port) for place, address, port in ways))
    assert not [f"{address} port {port}" for (_, address, port), made in zip(ways, found, strict=True) if made]


async def test_what_the_host_receives_and_sends(node: Guarded) -> None:
    here, outside, far, web = node.here, node.outside, node.far, node.web
    await node.write(hep("up", "eth0"))
    await node.start()
    await node.write(hep("up-too", "eth0"))
    states = (await node.programmed()).endpoints
    assert [states[f"HostEndpoint/{each}"].state for each in ("up", "up-too")] == ["up", "error"]
    async with Servers() as servers:
        for port in (22, 80):
            await servers.at(here, port, HOST, HOST6, HERE, "127.0.0.1")
        for port in (179, 80):
            await servers.at(outside, port, OUTSIDE, OUTSIDE6)
        await servers.at(web, 80, "10.0.0.1", "fd00::1")
        inbound = [(outside, HOST, 80), (outside, HOST6, 80)]
        outbound = [(here, OUTSIDE, 80), (here, OUTSIDE6, 80)]
        failsafe = [(outside, HOST, 22), (outside, HOST6, 22), (here, OUTSIDE, 179), (here, OUTSIDE6, 179)]
        others = [
            (here, "127.0.0.1", 80),
            (here, HOST, 80),
            (far, HERE, 80),
            (here, "10.0.0.1", 80),
            (here, "fd00::1", 80),
            (outside, "10.0.0.1", 80),
            (outside, "fd00::1", 80),
            (far, OUTSIDE, 80),
        ]
        await refused(*inbound, *outbound)
        await passed(*failsafe, *others)
        await node.write(policy("web", "host == 'up'", ingress=[tcp(80)]))
        await passed(*inbound)
        await refused(*outbound)
        await node.write(policy("web", "host == 'up'", ingress=[], egress=[tcp(80)]))
        await passed(*outbound)
        await refused(*inbound)
        await node.remove(policy("web", "host == 'up'"))
        await node.write(open_profile("open"), hep("up", "eth0", profiles=("open",)))
        await passed(*inbound, *outbound)
        await node.write(hep("up", "eth0", profiles=("absent",)))
        await refused(*inbound, *outbound)


async def test_failsafe_ports_are_as_configured(node: Guarded) -> None:
    only = felix(failsafe_inbound_host_ports=[ProtoPort(port=80, net=f"{OUTSIDE}/32")], failsafe_outbound_host_ports=[])
    await node.write(hep("up", "eth0"), only)
    await node.start()
    async with Servers() as servers:
        for port in (22, 80):
            await servers.at(node.here, port, HOST, HOST6)
        await servers.at(node.outside, 179, OUTSIDE)
        ways = [
            (node.outside, HOST, 80),
            (node.outside, HOST6, 80),
            (node.outside, HOST, 22),
            (node.here, OUTSIDE, 179),
        ]
        await passed(ways[0])
        await refused(*ways[1:])


async def test_what_is_forwarded_is_judged_only_by_policies_that_ask_for_it(node: Guarded) -> None:
    outside, far, web = node.outside, node.far, node.web
    await node.write(hep("up", "eth0"), open_profile("open"), hep("other", "eth1", profiles=("open",)))
    await node.start()
    async with Servers() as servers:
        for port in (80, 81):
            await servers.at(web, port, "10.0.0.1", "fd00::1")
            await servers.at(far, port, FAR, FAR6)
            await servers.at(outside, port, OUTSIDE, OUTSIDE6)
        entering = [(outside, each, 80) for each in ("10.0.0.1", "fd00::1", FAR, FAR6)]
        leaving = [(place, each, 80) for place in (web, far) for each in (OUTSIDE, OUTSIDE6)]
        inside = [(web, FAR, 80), (far, "10.0.0.1", 80)]
        await passed(*entering, *inside)
        forward = policy("fw", "host == 'up'", ingress=[tcp(81)], egress=[tcp(81)], apply_on_forward=True)
        await node.write(forward)
        await refused(*entering, *leaving)
        await passed(*inside, *((place, each, 81) for place, each, _ in (*entering, *leaving)))
        await node.write(pod("web", "10.0.0.1", "fd00::1", profiles=("absent",)))
        await passed((outside, FAR, 81))
        await refused((outside, "10.0.0.1", 81))


async def test_a_rule_may_name_either_end(node: Guarded) -> None:
    """The own side of a host's rule is whatever address the packet has: the host's, or of those behind it."""
    outside, far, here = node.outside, node.far, node.here
    four, six = tcp(80, nets=[f"{HOST}/32", "10.0.0.1/32"]), tcp(80, nets=[f"{HOST6}/128", f"{FAR6}/128"])
    own = policy("own", "host == 'up'", ingress=[four, six])
    spec = structs.replace(own.spec, egress=[tcp(80, nets=[f"{OUTSIDE}/32"]), ANY_FROM_PODS], apply_on_forward=True)
    await node.write(hep("up", "eth0", HOST, HOST6), structs.replace(own, spec=spec))
    await node.start()
    ip("addr", "add", "10.1.0.2/24", "dev", "eth0")
    async with Servers() as servers:
        await servers.at(here, 80, HOST, HOST6, "10.1.0.2")
        await servers.at(node.web, 80, "10.0.0.1", "fd00::1")
        await servers.at(far, 80, FAR, FAR6)
        await servers.at(outside, 80, OUTSIDE, OUTSIDE6)
        await passed((outside, HOST, 80), (outside, HOST6, 80), (outside, "10.0.0.1", 80), (outside, FAR6, 80))
        await refused((outside, "10.1.0.2", 80), (outside, "fd00::1", 80), (outside, FAR, 80))
        await passed((here, OUTSIDE, 80), (node.web, OUTSIDE6, 80))
        await refused((here, OUTSIDE6, 80), (far, OUTSIDE6, 80))


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
        await node.write(
            structs.replace(early, spec=structs.replace(early.spec, ingress=[tcp(8080, 22, 82, action=Action.DENY)]))
        )
        await passed(lb[1], (outside, HOST, 22))
        await refused(lb[0])
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


async def test_every_other_interface_also_one_that_comes_later(node: Guarded, tmp_path: Path) -> None:
    here, outside = node.here, node.outside
    await node.write(
        hep("rest", "*"),
        hep("up", "eth0", profiles=("open",)),
        open_profile("open"),
        policy("raw", "host == 'rest'", ingress=[ANY], do_not_track=True, apply_on_forward=True),
        felix(default_endpoint_to_host_action="Return"),
    )
    await node.start()
    state = await node.programmed()
    assert [problem for problem in state.problems if "doNotTrack" in problem and "rest" in problem]
    ip("link", "add", "new0", "type", "veth", "peer", "name", "eth9", "netns", node.far.namespace)
    ip("addr", "add", "10.3.0.1/24", "dev", "new0")
    ip("link", "set", "new0", "up")
    ip("-n", node.far.namespace, "addr", "add", "10.3.0.2/24", "dev", "eth9")
    ip("-n", node.far.namespace, "link", "set", "eth9", "up")
    async with Servers() as servers:
        await servers.at(here, 80, HOST, HERE, HERE6, "10.3.0.1", "127.0.0.1")
        await servers.at(here, 22, HERE, HERE6)
        await servers.at(node.web, 80, "10.0.0.1")
        closed = [(node.far, HERE, 80), (node.far, HERE6, 80), (node.far, "10.3.0.1", 80), (node.web, HOST, 80)]
        opened = [
            (outside, HOST, 80),
            (node.far, HERE, 22),
            (node.far, HERE6, 22),
            (here, "127.0.0.1", 80),
            (here, "10.0.0.1", 80),
            (outside, "10.0.0.1", 80),
            (node.far, "10.0.0.1", 80),
        ]
        await refused(*closed)
        await passed(*opened)
        await node.write(policy("in", "host == 'rest'", ingress=[tcp(80)]))
        await passed(*closed)
        for port in (80, 81):
            await servers.at(node.far, port, FAR, FAR6)
        await servers.at(node.web, 81, "10.0.0.1")
        await node.write(policy("fw", "host == 'rest'", [tcp(80)], [tcp(81)], apply_on_forward=True))
        await passed((node.far, "10.0.0.1", 80), (node.web, FAR, 81), (outside, FAR6, 81), (here, "10.0.0.1", 81))
        await refused((node.far, "10.0.0.1", 81), (node.web, FAR, 80), (outside, FAR6, 80))
        await node.write(felix(default_endpoint_to_host_action="Drop"))
        await passed(*closed[:3])
        await refused(closed[3])


async def test_an_interface_that_comes_later_and_a_felix_that_goes(node: Guarded) -> None:
    host = node.host
    await node.write(hep("named", "eth1"), hep("found", "", "10.3.0.1"))
    ip("link", "del", "eth1")
    await node.start()
    states = (await node.programmed()).endpoints
    assert (states["HostEndpoint/named"].state, states["HostEndpoint/found"].state) == ("pending", "pending")
    ip("link", "add", "new0", "type", "veth", "peer", "name", "eth9", "netns", node.outside.namespace)
    ip("addr", "add", "10.3.0.1/24", "dev", "new0")
    ip("link", "set", "new0", "up")
    ip("-n", node.outside.namespace, "addr", "add", "10.3.0.2/24", "dev", "eth9")
    ip("-n", node.outside.namespace, "link", "set", "eth9", "up")
    netns.delete(node.far.namespace)
    far = second_uplink(host)
    await node.status(
        lambda state: all(state.endpoints[f"HostEndpoint/{each}"].state == "up" for each in ("named", "found"))
    )
    async with Servers() as servers:
        await servers.at(node.here, 80, HERE, HERE6, "10.3.0.1")
        await servers.at(node.here, 22, HERE, "10.3.0.1")
        ways = [(far, HERE, 80), (far, HERE6, 80), (node.outside, "10.3.0.1", 80)]
        failsafe = [(far, HERE, 22), (node.outside, "10.3.0.1", 22)]
        for _ in range(2):
            await refused(*ways)
            await passed(*failsafe)
            await node.stop()
            await refused(*ways)
            await passed(*failsafe)
            await node.start()
        await node.remove(hep("named"))
        await node.remove(hep("found"))
        await passed(*ways)
    assert "host-" not in nft("list", "table", "inet", "muslin")


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


async def test_a_pod_may_send_from_prefixes_that_it_was_given(node: Guarded) -> None:
    honest = pod("web", "10.0.0.1", "fd00::1")
    given = ["10.77.0.0/24", "fd77::/64"]
    await node.write(structs.replace(honest, spec=structs.replace(honest.spec, allow_spoofed_source_prefixes=given)))
    await node.start()
    for address in ("10.77.0.7", "10.78.0.7"):
        ip("-n", node.web.namespace, "addr", "add", f"{address}/32", "dev", "eth0")
        ip("-n", node.db.namespace, "addr", "add", f"{address}/32", "dev", "eth0")
    for address in ("fd77::7", "fd78::7"):
        ip("-n", node.web.namespace, "addr", "add", f"{address}/128", "dev", "eth0", "nodad")
        ip("-n", node.db.namespace, "addr", "add", f"{address}/128", "dev", "eth0", "nodad")
    four, six = node.far.udp(FAR, 53), node.far.udp(FAR6, 53)

    def send(place: Place, source: str, text: bytes) -> None:
        place.udp(source).sendto(text, (FAR6 if ":" in source else FAR, 53))

    for source in ("10.78.0.7", "fd78::7"):
        send(node.web, source, b"lie")
    for source in ("10.77.0.7", "fd77::7"):
        send(node.db, source, b"lie")
        send(node.web, source, b"borrowed")
    assert await first_datagram(four) == (b"borrowed", "10.77.0.7")
    assert await first_datagram(six) == (b"borrowed", "fd77::7")
    await node.write(
        structs.replace(honest, spec=structs.replace(honest.spec, allow_spoofed_source_prefixes=["10.77.0.0/28"]))
    )
    send(node.web, "fd77::7", b"lie")
    send(node.web, "10.77.0.7", b"still")
    send(node.web, "fd00::1", b"own")
    assert await first_datagram(four) == (b"still", "10.77.0.7")
    assert await first_datagram(six) == (b"own", "fd00::1")
    await node.write(honest)
    await until(lambda: "spoofs4" not in nft("list", "table", "inet", "muslin"))
    send(node.web, "10.77.0.7", b"lie")
    send(node.web, "10.0.0.1", b"own")
    assert await first_datagram(four) == (b"own", HERE), "its own addresses are of a pool with natOutgoing"

"""Host endpoints on a real kernel: two uplinks, two pods, both families, packets that arrive or do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from core.resources.network import ProtoPort
from core.resources.policy import Action, EntityRule, Rule
from linux import netns
from tests.felix.cluster import felix, pod
from tests.felix.guarded import (
    ANY,
    FAR,
    FAR6,
    HERE,
    HERE6,
    HOST6,
    OUTSIDE6,
    Guarded,
    Servers,
    hep,
    open_profile,
    passed,
    policy,
    refused,
    second_uplink,
    tcp,
)
from tests.felix.host import HOST, OUTSIDE, ip, nft

pytestmark = pytest.mark.kernel

ANY_FROM_PODS = Rule(action=Action.ALLOW, source=EntityRule(selector="app == 'web'", namespace_selector="all()"))


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

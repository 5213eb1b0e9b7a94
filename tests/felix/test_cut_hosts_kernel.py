"""Connections over a host's own interfaces end when policy comes to deny them, and no others. Real packets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from core.resources import Resource
from core.resources.policy import Action, Rule
from linux.conntrack import Conntrack
from tests.felix.cluster import felix
from tests.felix.guarded import ANY, FAR, FAR6, HERE, HOST6, OUTSIDE6, Guarded, hep, open_profile, policy
from tests.felix.guarded import tcp as to_ports
from tests.felix.host import HOST, OUTSIDE, Place, dropped, nft, until
from tests.felix.test_cut_kernel import Talk, listening

pytestmark = pytest.mark.kernel

OPEN: tuple[Resource, ...] = (open_profile("open"), hep("up", "eth0", profiles=("open",)))
DENY = Rule(action=Action.DENY)


@pytest.fixture
def conntrack() -> Iterator[Conntrack]:
    with Conntrack() as opened:
        yield opened


async def talk(client: Place, server: Place, address: str, port: int, own: str = "", behind: int = 0) -> Talk:
    """A connection to `address` and `port`, which the server accepts at `own` and `behind`, if those differ."""
    async with listening(server, own or address, behind or port) as opened:
        calling = await client.connect(address, port)
        accepted, _ = await asyncio.get_running_loop().sock_accept(opened)
    accepted.setblocking(False)
    server.sockets.append(accepted)
    made = Talk(calling, accepted)
    await made.carries(b"hello")
    return made


def closing(port: int, **fields: object) -> Resource:
    """All but one port is denied, both ways."""
    rules = [to_ports(port, action=Action.DENY), ANY]
    return policy("closing", "host == 'up'", rules, rules, **fields)


@pytest.mark.parametrize(("host", "outside"), [(HOST, OUTSIDE), (HOST6, OUTSIDE6)])
async def test_what_the_host_receives_and_sends(node: Guarded, conntrack: Conntrack, host: str, outside: str) -> None:
    await node.write(*OPEN)
    await node.start()
    inwards = await talk(node.outside, node.here, host, 80)
    outwards = await talk(node.here, node.outside, outside, 80)
    stay = [
        await talk(node.outside, node.here, host, 22),
        await talk(node.outside, node.here, host, 81),
        await talk(node.here, node.outside, outside, 179),
        await talk(node.far, node.here, HERE, 80),
        await talk(node.here, node.web, "10.0.0.1", 80),
        await talk(node.outside, node.web, "10.0.0.1", 80),
    ]
    rules = [to_ports(80, 22, 179, action=Action.DENY), ANY]
    await node.write(policy("closing", "host == 'up'", rules, rules))
    await _gone(conntrack, inwards, outwards)
    await inwards.is_dead()
    await outwards.is_dead()
    for each in stay:
        await each.carries(b"still here")


async def _gone(conntrack: Conntrack, *talks: Talk) -> None:
    ports = {each.client.getsockname()[1] for each in talks}
    await until(lambda: not ports & {flow.original.sport for flow in conntrack.flows()})


@pytest.mark.parametrize("far", [FAR, FAR6])
async def test_what_the_host_carries_for_others(node: Guarded, conntrack: Conntrack, far: str) -> None:
    six = ":" in far
    outside, web = (OUTSIDE6, "fd00::1") if six else (OUTSIDE, "10.0.0.1")
    await node.write(*OPEN)
    await node.start()
    go = [
        await talk(node.outside, node.far, far, 80),
        await talk(node.far, node.outside, outside, 80),
        await talk(node.outside, node.web, web, 80),
        await talk(node.web, node.outside, outside, 80),
    ]
    stay = [
        await talk(node.outside, node.far, far, 81),
        await talk(node.web, node.far, far, 80),
        await talk(node.web, node.outside, outside, 81),
        await talk(node.outside, node.here, HOST6 if six else HOST, 81),
    ]
    await node.write(closing(80, apply_on_forward=True))
    await _gone(conntrack, *go)
    for each in go:
        await each.is_dead()
    for each in stay:
        await each.carries(b"still here")


async def test_before_nat_by_the_port_that_was_asked_for(node: Guarded, conntrack: Conntrack) -> None:
    nft("add", "table", "ip", "lb")
    nft("add chain ip lb pre { type nat hook prerouting priority -100; }")
    nft(f"add rule ip lb pre ip daddr {HOST} tcp dport {{ 8080, 8081 }} dnat to 10.0.0.1:80")
    await node.write(*OPEN)
    await node.start()
    flips = await talk(node.outside, node.web, HOST, 8080, "10.0.0.1", 80)
    stays = await talk(node.outside, node.web, HOST, 8081, "10.0.0.1", 80)
    early = policy(
        "early",
        "host == 'up'",
        [to_ports(8080, 22, action=Action.DENY)],
        pre_dnat=True,
        apply_on_forward=True,
        types=["Ingress"],
    )
    ssh = await talk(node.outside, node.here, HOST, 22)
    await node.write(early)
    await _gone(conntrack, flips)
    await flips.is_dead()
    assert dropped("cut") > 0, "the pod's next packet would have begun a flow that policy allows"
    await stays.carries(b"still here")
    await ssh.carries(b"still here")


async def test_an_endpoint_that_comes_and_who_wants_connections_kept(node: Guarded, conntrack: Conntrack) -> None:
    await node.write(felix(policy_cut_connections="Disabled"))
    await node.start()
    running, other = await talk(node.outside, node.here, HOST, 80), await talk(node.far, node.here, HERE, 80)
    await node.write(hep("up", "eth0"))
    assert not await node.outside.reaches(HOST, 80)
    await running.carries(b"still here")
    await node.stop()
    await node.write(felix(policy_cut_connections="Enabled"))
    await node.start()
    await _gone(conntrack, running)
    await running.is_dead()
    await other.carries(b"still here")
    await node.write(hep("rest", "*"))
    await _gone(conntrack, other)
    await other.is_dead()


async def test_from_a_pod_to_its_host(node: Guarded, conntrack: Conntrack) -> None:
    await node.write(felix(default_endpoint_to_host_action="Accept"))
    await node.start()
    running = await talk(node.web, node.here, HOST, 80)
    other = await talk(node.here, node.web, "10.0.0.1", 80)
    await node.write(felix(default_endpoint_to_host_action="Return"))
    await running.carries(b"still here")
    await node.write(hep("rest", "*"))
    await _gone(conntrack, running)
    await running.is_dead()
    await other.carries(b"still here")

"""A node answers its own pods' BGP where BGPConfiguration says, and lets in those that are asked for. Real packets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from core.resources import BGPPeer
from felix.agent import cleanup
from linux.conntrack import Conntrack
from tests.felix.cluster import deny
from tests.felix.guarded import HOST6, Guarded
from tests.felix.host import HOST, ip, until
from tests.felix.test_cut_kernel import Talk, listening
from tests.felix.test_peering_address import BOTH, FOUR, SIX, asked, configured

pytestmark = pytest.mark.kernel

FAMILIES = [(FOUR, HOST, "10.0.0.1"), (SIX, HOST6, "fd00::1")]
WEB = asked("app == 'web'")


def on_lo() -> set[str]:
    (link,) = json.loads(ip("-j", "addr", "show", "dev", "lo"))
    return {each["local"] for each in link["addr_info"]} - {"127.0.0.1", "::1"}


@contextlib.asynccontextmanager
async def answering(node: Guarded, *ends: tuple[str, int]) -> AsyncIterator[None]:
    """The node's own servers."""
    async with contextlib.AsyncExitStack() as stack:
        for address, port in ends:
            await stack.enter_async_context(node.here.echo(port, address))
        yield


async def test_a_selected_pod_calls_the_speaker_and_nothing_else(node: Guarded) -> None:
    await node.write(BOTH, WEB)
    await node.start()
    ends = [end for peering, own, _ in FAMILIES for end in ((peering, 179), (peering, 80), (own, 179))]
    async with answering(node, *ends):
        for peering, own, source in FAMILIES:
            called = await node.web.connect(peering, 179)
            assert called.getsockname()[0] == source
            assert not await node.web.reaches(peering, 80)
            assert not await node.web.reaches(own, 179)
            assert not await node.db.reaches(peering, 179)
        await node.write(deny("web", "shop", "app == 'web'"))
        for peering, _, _ in FAMILIES:
            assert not await node.web.reaches(peering, 179)


async def test_another_port_opens_as_it_is_configured(node: Guarded) -> None:
    await node.write(BOTH, WEB, configured("node.a", listenPort=1790))
    await node.start()
    async with answering(node, (FOUR, 179), (FOUR, 1790), (SIX, 1790)):
        assert [await node.web.reaches(*end) for end in ((FOUR, 1790), (SIX, 1790), (FOUR, 179))] == [True, True, False]


async def test_the_speaker_calls_its_pods_from_there_and_nobody_translates(node: Guarded) -> None:
    await node.write(BOTH, WEB)
    await node.start()
    for peering, _, pod in FAMILIES:
        async with listening(node.web, pod, 179) as opened:
            calling = node.here.open(socket.SOCK_STREAM, peering, 0, opened.family)
            await asyncio.get_running_loop().sock_connect(calling, (pod, 179))
            accepted, (seen, *_) = await asyncio.get_running_loop().sock_accept(opened)
            accepted.close()
            assert seen == peering


async def test_the_address_follows_its_configuration_and_comes_back_when_taken(node: Guarded) -> None:
    ip("addr", "add", "192.0.2.1/32", "dev", "lo")
    await node.write(BOTH)
    await node.start()
    routes = ip("route", "show") + ip("-6", "route", "show")
    assert on_lo() == {FOUR, SIX, "192.0.2.1"}
    ip("addr", "del", f"{FOUR}/32", "dev", "lo")
    ip("addr", "del", f"{SIX}/128", "dev", "lo")
    await until(lambda: on_lo() == {FOUR, SIX, "192.0.2.1"})
    await node.write(configured("node.a", localWorkloadPeeringIPV4="169.254.9.9"))
    assert on_lo() == {"169.254.9.9", SIX, "192.0.2.1"}
    await node.stop()
    assert on_lo() == {"169.254.9.9", SIX, "192.0.2.1"}
    await node.write(configured("node.a"))
    await node.start()
    assert on_lo() == {FOUR, SIX, "192.0.2.1"}
    assert ip("route", "show") + ip("-6", "route", "show") == routes
    await node.remove(BOTH)
    assert on_lo() == {"192.0.2.1"}


async def test_cleanup_takes_the_address_away(node: Guarded) -> None:
    await node.write(BOTH)
    await node.start()
    await node.stop()
    assert on_lo() == {FOUR, SIX}
    await cleanup()
    assert on_lo() == set()


@pytest.fixture
def conntrack() -> Iterator[Conntrack]:
    with Conntrack() as opened:
        yield opened


@pytest.mark.parametrize(("peering", "pod"), [(FOUR, "10.0.0.1"), (SIX, "fd00::1")])
async def test_a_session_ends_when_nobody_asks_for_it_any_more(
    node: Guarded, conntrack: Conntrack, peering: str, pod: str
) -> None:
    await node.write(BOTH, asked("has(app)"))
    await node.start()
    talks: list[Talk] = []
    async with listening(node.here, peering, 179) as opened:
        for place in (node.web, node.db):
            calling = await place.connect(peering, 179)
            accepted, _ = await asyncio.get_running_loop().sock_accept(opened)
            accepted.setblocking(False)
            node.here.sockets.append(accepted)
            talks.append(Talk(calling, accepted))
    for each in talks:
        await each.carries(b"hello")

    def known() -> set[str]:
        return {str(each.original.source) for each in conntrack.flows() if each.original.dport == 179}

    unasked: BGPPeer = asked("app == 'db'")
    await node.write(unasked)
    await until(lambda: pod not in known())
    await talks[0].is_dead()
    await talks[1].carries(b"still here")

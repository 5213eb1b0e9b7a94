"""A node that reflects to a hundred clients, two blocks each: all learn of all, and of a loss; a restart loses nothing.

    [ agent, ExaBGP ]  10.9.9.1, CLUSTER_ID 244.0.0.1
         │ 100 sessions
    [ one BIRD ]       10.9.1.1 ... 10.9.1.100, each client a session with a table and a router id of its own

The reflector has the higher address, so it calls. BIRD has one session a remote address and port at most, so each
client calls it by another port; nobody ever uses that.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping

import pytest
from bgp_world import AgentProcess, Bird, World, block, defaults, made, node, pool, until

from core.resources import BGPPeer, Resource

pytestmark = pytest.mark.kernel

CLIENTS, BLOCKS = 100, 2
REFLECTOR, CLUSTER = "10.9.9.1", "244.0.0.1"
LOST, GAINING = 3, 7
EVERYTHING = CLIENTS * CLIENTS * BLOCKS
FIRST_PORT = 2000

CLIENT = """
ipv4 table t{n};
protocol static s{n} {{ ipv4 {{ table t{n}; }}; {routes} }}
protocol bgp c{n} {{
  router id {address}; local {address} as 64512; neighbor {reflector} port {port} as 64512;
  direct; passive on; hold time 30; graceful restart on;
  ipv4 {{ table t{n}; igp table master4; gateway recursive; import all; export where source = RTS_STATIC; }};
}}
"""


def address(client: int) -> str:
    return f"10.9.1.{client + 1}"


def blocks(client: int) -> list[str]:
    return [f"10.244.{client}.{64 * number}/26" for number in range(BLOCKS)]


def clients(more: Mapping[int, str]) -> str:
    """BIRD's side, with `more` blocks by client."""
    return "".join(
        CLIENT.format(
            n=client,
            address=address(client),
            reflector=REFLECTOR,
            port=FIRST_PORT + client,
            routes=" ".join(
                f"route {each} blackhole;" for each in [*blocks(client), *([more[client]] if client in more else [])]
            ),
        )
        for client in range(CLIENTS)
    )


def manifests() -> Iterator[Resource]:
    yield node("reflector", f"{REFLECTOR}/16", labels={"role": "reflector"}, routeReflectorClusterID=CLUSTER)
    yield pool("main", "10.244.0.0/16")
    yield defaults(nodeToNodeMeshEnabled=False)
    yield made(BGPPeer, "reflected", {"nodeSelector": "!has(role)", "peerSelector": "role == 'reflector'"})
    for client in range(CLIENTS):
        yield node(f"client-{client}", f"{address(client)}/16")
        yield from (block(each, f"client-{client}") for each in blocks(client))


class Cluster:
    """The reflector and its clients, every one of which has learnt everything."""

    def __init__(self, world: World) -> None:
        world.wire("reflector", [f"{REFLECTOR}/16"], "clients", [f"{address(each)}/16" for each in range(CLIENTS)])
        self.bird = Bird(world, "clients", address(0))
        self.bird.start(clients({}))
        self.agent = AgentProcess(world, "reflector", settle_s=30)
        self.agent.apply(*manifests())
        until("every client knows everything", lambda: self.count() == EVERYTHING, 30)

    def count(self) -> int:
        """How many routes all clients have together, their own with them."""
        found = re.search(
            r"Total: \d+ of \d+ routes for (\d+) networks", self.bird.ask("show", "route", "table", "all", "count")
        )
        assert found is not None
        return int(found[1])

    def told(self) -> dict[int, tuple[int, int]]:
        """How many announcements each client has heard, and of these how many were news to it."""
        said = self.bird.ask("show", "protocols", "all")
        stats = re.findall(r"^c(\d+) .*?Import updates: +(\d+) +\d+ +\d+ +\d+ +(\d+)", said, re.MULTILINE | re.DOTALL)
        return {int(client): (int(heard), int(news)) for client, heard, news in stats}

    def restarting(self) -> bool:
        """Whether a client still keeps routes because the reflector restarts."""
        return "graceful restart active" in self.bird.ask("show", "protocols", "all")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    world = World(tmp_path_factory.mktemp("reflector"))
    try:
        yield Cluster(world)
    finally:
        world.close()


def test_each_client_learns_of_all_others_and_by_whom(cluster: Cluster) -> None:
    _, *tables = cluster.bird.ask("show", "route", "table", "all", "all").split("\nTable t")
    origins = {each: address(client) for client in range(CLIENTS) for each in blocks(client)}
    assert len(tables) == CLIENTS
    for client, table in ((int(each.partition(":")[0]), each) for each in tables):
        heard = re.findall(
            rf"^(\S+) +\S+ \[c{client} .*?next_hop: (\S+).*?originator_id: (\S+).*?cluster_list: ([\d. ]+)",
            table,
            re.MULTILINE | re.DOTALL,
        )
        expected = {(each, whose, whose, CLUSTER) for each, whose in origins.items() if each not in blocks(client)}
        assert {(prefix, hop, who, through.strip()) for prefix, hop, who, through in heard} == expected
        assert len(heard) == len(expected)


def test_a_new_block_reaches_everybody_and_goes_again(cluster: Cluster) -> None:
    new = "10.244.250.0/26"
    cluster.bird.configure(clients({GAINING: new}))
    until("all have the new block", lambda: cluster.count() == EVERYTHING + CLIENTS, 5)
    cluster.bird.configure(clients({}))
    until("nobody has it", lambda: cluster.count() == EVERYTHING, 5)


def test_what_a_lost_client_had_is_withdrawn_from_everybody(cluster: Cluster) -> None:
    cluster.bird.ask("disable", f"c{LOST}")
    left = EVERYTHING - 2 * (CLIENTS - 1) * BLOCKS
    until("its blocks are gone, and it has nobody's", lambda: cluster.count() == left, 5)
    cluster.bird.ask("enable", f"c{LOST}")
    until("it is back", lambda: cluster.count() == EVERYTHING, 20)


def kill_exabgp(agent: AgentProcess) -> None:
    os.kill(agent.exabgp(), signal.SIGKILL)


def restart(agent: AgentProcess) -> None:
    agent.process.send_signal(signal.SIGKILL)
    agent.process.wait(timeout=10)
    agent.start()
    agent.apply(*manifests())


@pytest.mark.parametrize("fail", [kill_exabgp, restart])
def test_a_restart_of_the_reflector_takes_no_route_from_anybody(
    cluster: Cluster, fail: Callable[[AgentProcess], None]
) -> None:
    before = cluster.told()
    assert len(before) == CLIENTS
    fail(cluster.agent)

    def all_told_again() -> bool:
        return all(heard >= before[each][0] + (CLIENTS - 1) * BLOCKS for each, (heard, _) in cluster.told().items())

    until("everybody is told everything again", all_told_again, 25)
    until("all have its End-of-RIB", lambda: not cluster.restarting(), 10)
    assert cluster.count() == EVERYTHING
    assert {each: news for each, (_, news) in cluster.told().items()} == {
        each: news for each, (_, news) in before.items()
    }

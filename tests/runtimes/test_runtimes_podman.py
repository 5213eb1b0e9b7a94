"""What podman asks of a network, and what becomes of it when things go wrong."""

from __future__ import annotations

import json

import pytest

from tests.runtimes.container import server
from tests.runtimes.machine import Said
from tests.runtimes.site import EXAMPLES, NETWORK, Site, plugin

pytestmark = pytest.mark.lab


async def test_the_next_container_of_a_name_is_another(runtimes: Site) -> None:
    former = await runtimes.podman.run("web", *server("web"))
    await runtimes.podman.remove("web")
    following = await runtimes.podman.run("web", *server("web"))
    assert set(former.addresses).isdisjoint(following.addresses), "addresses are given anew as late as can be"
    assert await (await following.serving()).fetches(following.address) == "web"


async def test_a_container_that_is_stopped_and_started_again(runtimes: Site) -> None:
    web = await runtimes.podman.run("web", *server("web"))
    await runtimes.machines["node1"].run("podman", "stop", "--time", "0", "web")
    await runtimes.until_nothing_is_left()
    await runtimes.machines["node1"].run("podman", "start", "web")
    again = await (await runtimes.podman.find("web")).serving()
    assert again.id == web.id
    assert await again.pings(again.addresses[1])


async def test_a_container_that_cannot_start_gives_its_address_back(runtimes: Site) -> None:
    said = await runtimes.podman.ask("broken", "/bin/there-is-no-such-program")
    assert said.status == 127, said
    await runtimes.until_nothing_is_left()


async def test_a_container_whose_monitor_is_killed(runtimes: Site) -> None:
    web = await (await runtimes.podman.run("web", *server("web"))).serving()
    monitor = (await runtimes.podman.inspect("web"))["State"]["ConmonPid"]
    await runtimes.machines["node1"].run("kill", "-9", str(monitor))
    # asked from outside: a podman that finds the monitor gone may give the container up
    with runtimes.connection("outside", web.address, 80) as caller:
        caller.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert caller.recv(64).startswith(b"HTTP/1.1 200"), "its network went with its monitor"
    await runtimes.podman.remove("web")
    await runtimes.until_nothing_is_left()


async def test_a_container_that_asks_for_an_address(runtimes: Site) -> None:
    options = ("--ip", "10.246.99.9", "--mac-address", "02:00:00:00:99:09")
    web = await runtimes.podman.run("web", *server("web"), options=options)
    assert web.address == "10.246.99.9"
    shown = await web.run("ip", "link", "show", "dev", "eth0")
    assert "02:00:00:00:99:09" in shown
    said = await runtimes.podman.ask("second", options=options[:2])
    assert said.status != 0
    assert "10.246.99.9" in said.err


async def test_a_limit_of_bandwidth_is_in_force(runtimes: Site) -> None:
    """4 Mbit/s towards the container, beyond the first 50 kB: 500 kB take 0.9 s, and milliseconds without."""
    runtimes.offer("20-limited.conflist")
    took = {}
    for name in ("limited", NETWORK):
        pod = await runtimes.podman.run(name, *server(name), options=("--network", name))
        took[name] = await runtimes.echoed(await pod.serving(), bytes(500_000))
    assert took["limited"] > 0.7
    assert took["limited"] > 3 * took[NETWORK]


async def test_a_configuration_made_for_calico_is_taken_as_it_is(runtimes: Site) -> None:
    runtimes.offer("30-calico.conflist")
    pod = await runtimes.podman.run(
        "web", *server("web"), options=("--network", "as-for-calico", "--publish", "8083:80")
    )
    assert len(pod.addresses) == 2
    assert " mtu 1440 " in await pod.run("ip", "link", "show", "dev", "eth0")
    with runtimes.connection("outside", str(runtimes.lab.address("node1", 4)), 8083) as caller:
        caller.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert caller.recv(64).startswith(b"HTTP/1.1 200")


async def test_the_example_is_what_install_writes(runtimes: Site) -> None:
    installed = await runtimes.machines["node1"].run("cat", "/etc/cni/net.d/10-muslin.conflist")
    assert json.loads(installed) == json.loads((EXAMPLES / "10-muslin.conflist").read_text())


async def test_while_the_agent_is_away_nothing_starts_and_nothing_is_given_away(runtimes: Site) -> None:
    node1 = runtimes.machines["node1"]
    former = await runtimes.podman.run("former", *server("former"))
    runtimes.lab.kill("cni@node1", children=True)
    try:
        said = await runtimes.podman.ask("web", *server("web"))
        assert said.status != 0
        assert "muslin's CNI agent" in said.err
        # podman logs that its network could not be cleaned up, if that, and forgets the container: what it had stays
        await runtimes.podman.remove("web", "former")
    finally:
        runtimes.lab.start("cni@node1")
        await runtimes.until_ready()
    web = await runtimes.podman.run("web", *server("web"))
    assert set(web.addresses).isdisjoint(former.addresses)
    # whoever asks again, as containerd does, or the collector in its time
    asked = {"CNI_CONTAINERID": former.id, "CNI_IFNAME": "eth0", "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=former"}
    removed = await plugin(node1, "DEL", **asked)
    assert removed == Said(0, "", "")

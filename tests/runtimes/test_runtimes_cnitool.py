"""The CNI project's own client, of libcni 1.3, which speaks version 1.1 of the specification to us, whole."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.runtimes.container import server
from tests.runtimes.machine import Machine, Said
from tests.runtimes.site import Site

pytestmark = pytest.mark.lab

HOUSE = Path(__file__).parents[2]
PROGRAM = subprocess.run([HOUSE / "deploy/cnitool.sh"], capture_output=True, text=True, check=True).stdout.strip()
"""As deploy/install.sh has built it."""

NET = "/run/netns/tool"
CONFLIST = {
    "cniVersion": "1.1.0",
    "name": "tool",
    "plugins": [{"type": "muslin"}],
}


@dataclass
class Tool:
    """cnitool on a machine."""

    machine: Machine

    async def ask(self, verb: str, network: str = "tool") -> Said:
        """`cnitool VERB NETWORK NETNS`; it takes the network's configuration from a folder of its own."""
        return await self.machine.ask(
            PROGRAM, verb, network, NET, env={"NETCONFPATH": "/run/net.d", "CNI_PATH": "/opt/cni/bin"}
        )

    async def run(self, verb: str, network: str = "tool") -> str:
        said = await self.ask(verb, network)
        assert said.status == 0, said
        return said.out


@pytest.fixture
async def tool(runtimes: Site) -> AsyncIterator[Tool]:
    machine = runtimes.machines["node1"]
    machine.write("/run/net.d/10-muslin.conflist", json.dumps(CONFLIST))
    await machine.run("ip", "netns", "add", "tool")
    await machine.run("ip", "-n", "tool", "link", "set", "lo", "up")
    yield Tool(machine)
    await machine.run("ip", "netns", "delete", "tool")


async def test_every_verb(runtimes: Site, tool: Tool) -> None:
    await tool.run("status")
    added = json.loads(await tool.run("add"))
    assert added["cniVersion"] == "1.1.0"
    addresses = [each["address"].partition("/")[0] for each in added["ips"]]
    assert len(addresses) == 2
    assert json.loads(await tool.run("add"))["ips"] == added["ips"], "asked again, it is another"
    await tool.run("check")
    await tool.machine.run("ip", "-n", "tool", "addr", "flush", "dev", "eth0", "scope", "global")
    broken = await tool.ask("check")
    assert broken.status == 1
    assert addresses[0] in broken.err
    await tool.run("del")
    await tool.run("del")
    await runtimes.until_nothing_is_left()


async def test_gc_takes_away_what_the_tool_remembers_and_judges_nothing_else(runtimes: Site, tool: Tool) -> None:
    """cnitool removes what /var/lib/cni remembers of its network (podman's, too, if that has the same name), and then
    asks plugins to collect without saying what is in use. No list is not an empty one: other pods stay."""
    web = await runtimes.podman.run("web", *server("web"))
    await tool.run("add")
    said = await tool.ask("gc")
    assert said.status == 1
    assert "GC needs the list of attachments in use" in said.err
    assert (await runtimes.left())["endpoints"] == ["default/node1-k8s-web-eth0"]
    assert await (await web.serving()).fetches(web.address) == "web"


async def test_status_says_what_is_missing(runtimes: Site, tool: Tool) -> None:
    runtimes.lab.kill("cni@node1", children=True)
    try:
        said = await tool.ask("status")
        assert said.status == 1
        assert "muslin's CNI agent" in said.err
    finally:
        runtimes.lab.start("cni@node1")
        await runtimes.until_ready()
    await tool.run("status")

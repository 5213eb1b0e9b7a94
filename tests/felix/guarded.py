"""A node with two uplinks and two pods, in both families, and words for host endpoints and their policies."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeAlias

from core.resources import GlobalNetworkPolicy, HostEndpoint, Metadata, Profile, StagedGlobalNetworkPolicy
from core.resources.network import HostEndpointSpec
from core.resources.policy import Action, EntityRule, GlobalNetworkPolicySpec, ProfileSpec, Rule
from core.resources.staged import StagedGlobalNetworkPolicySpec
from datastore.sqlite import SqliteStore
from linux import netns
from tests.felix.host import HOST, Host, Place, ip, nft
from tests.felix.one_node import STATE, Cluster

HOST6, OUTSIDE6 = "fd01::1", "fd01::fe"
HERE, FAR, HERE6, FAR6 = "10.2.0.1", "10.2.0.254", "fd02::1", "fd02::fe"
"""The node on its second uplink, and who is there."""

ANY = Rule(action=Action.ALLOW)

Way: TypeAlias = tuple[Place, str, int]
"""Who connects, to where, at which TCP port."""


class Guarded(Cluster):
    """`Cluster` with IPv6 on the uplink `eth0`, and a second one, `eth1`, to `far`."""

    def __init__(self, store: SqliteStore, host: Host, run_dir: Path) -> None:
        super().__init__(store, host, run_dir)
        self.here, self.outside = host.place, host.outside
        self.far = second_uplink(host)
        _dual_stack(host.outside.namespace)
        for prefix in ("10.0.0.0/16", "10.2.0.0/24"):
            ip("-n", host.outside.namespace, "route", "add", prefix, "via", HOST)
        for prefix in ("fd00::/64", "fd02::/64"):
            ip("-n", host.outside.namespace, "-6", "route", "add", prefix, "via", HOST6)


def _dual_stack(outside: str) -> None:
    ip("link", "set", "lo", "up")
    ip("addr", "add", f"{HOST6}/64", "dev", "eth0", "nodad")
    ip("-n", outside, "addr", "add", f"{OUTSIDE6}/64", "dev", "eth0", "nodad")


def _usable_at_once(namespace: str) -> None:
    """No search for duplicates on links made from now on: a router without a link-local address finds no neighbour."""
    with netns.inside(namespace) if namespace else contextlib.nullcontext():
        Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")


def second_uplink(host: Host) -> Place:
    """Join `far`, whose default route is the node, by `eth1`."""
    far = host.pods["far"] = Place(f"muslin-{os.getpid()}-far", (FAR, FAR6))
    netns.create(far.namespace)
    for namespace in ("", far.namespace):
        _usable_at_once(namespace)
    ip("link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", far.namespace)
    ip("-n", far.namespace, "link", "set", "eth0", "up")
    ip("link", "set", "eth1", "up")
    for here, there in ((HERE, FAR), (HERE6, FAR6)):
        length, dad = (64, ("nodad",)) if ":" in here else (24, ())
        ip("addr", "add", f"{here}/{length}", "dev", "eth1", *dad)
        ip("-n", far.namespace, "addr", "add", f"{there}/{length}", "dev", "eth0", *dad)
        ip("-n", far.namespace, "route", "add", "default", "via", here)
    return far


@contextlib.asynccontextmanager
async def guarded(host: Host, folder: Path) -> AsyncIterator[Guarded]:
    """The node, with its store; nothing of it is left."""
    store = await SqliteStore.open(folder / "store.db")
    made = Guarded(store, host, folder)
    try:
        await made.write(*STATE)
        yield made
    finally:
        await made.stop()
        await store.close()


def hep(
    name: str, interface: str = "", *expected: str, node: str = "a", profiles: tuple[str, ...] = ()
) -> HostEndpoint:
    """A host endpoint, labelled `host=NAME`."""
    spec = HostEndpointSpec(node=node, interface_name=interface, expected_ips=list(expected), profiles=list(profiles))
    return HostEndpoint(metadata=Metadata(name=name, labels={"host": name}), spec=spec)


def open_profile(name: str) -> Profile:
    """A profile that allows everything."""
    return Profile(metadata=Metadata(name=name), spec=ProfileSpec(ingress=[ANY], egress=[ANY]))


def tcp(*ports: int, action: Action = Action.ALLOW, source: bool = False, nets: Sequence[str] = ()) -> Rule:
    """A rule for TCP at these ports (and prefixes) of the destination; of the source with `source`."""
    end = EntityRule(ports=list(ports), nets=list(nets))
    return Rule(
        action=action,
        protocol="TCP",
        source=end if source else EntityRule(),
        destination=EntityRule() if source else end,
    )


def policy(
    name: str, selector: str, ingress: list[Rule] | None = None, egress: list[Rule] | None = None, **fields: object
) -> GlobalNetworkPolicy:
    """A GlobalNetworkPolicy."""
    spec = GlobalNetworkPolicySpec(selector=selector, ingress=ingress, egress=egress, **fields)  # type: ignore[arg-type]
    return GlobalNetworkPolicy(metadata=Metadata(name=name), spec=spec)


def staged(
    name: str, selector: str, ingress: list[Rule] | None = None, egress: list[Rule] | None = None, **fields: object
) -> StagedGlobalNetworkPolicy:
    """A StagedGlobalNetworkPolicy that would be set."""
    spec = StagedGlobalNetworkPolicySpec(selector=selector, ingress=ingress, egress=egress, **fields)  # type: ignore[arg-type]
    return StagedGlobalNetworkPolicy(metadata=Metadata(name=name), spec=spec)


@contextlib.contextmanager
def others_marks(*counted: str, mark: int = 0x4000) -> Iterator[None]:
    """Somebody else's table marks all that comes in or is sent, and counts at the hooks `counted` what is still so."""
    nft("add", "table", "inet", "others")
    for hook in ("prerouting", "output"):
        base = f"{{ type filter hook {hook} priority -350; }}"
        nft(f"add chain inet others first-{hook} {base}")
        nft(f"add rule inet others first-{hook} meta mark set {mark:#x}")
    for hook in counted:
        nft(f"add counter inet others {hook}-kept")
        nft(f"add counter inet others {hook}-lost")
        nft(f"add chain inet others last-{hook} {{ type filter hook {hook} priority 50; }}")
        nft(f"add rule inet others last-{hook} meta mark and 0xffff == {mark:#x} counter name {hook}-kept return")
        nft(f"add rule inet others last-{hook} counter name {hook}-lost")
    try:
        yield
    finally:
        nft("delete", "table", "inet", "others")


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

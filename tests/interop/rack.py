"""A node with muslin's agent on it, and the router above: what every case of a kind shares.

    [ bird | frr | gobgp ]  10.9.1.1/24, fd09::1/64          router, AS 65001
             │              behind it 10.244.5.1, fd44::81   (a far pod, on its loopback)
    [ agent, ExaBGP ]       10.9.1.2/24, fd09::2/64          node n1, AS 64512
                            10.244.1.1, fd44::41             (its own pod, on its loopback)

A second router can stand beside the first, for the cases that need two: 10.9.2.1 towards the node's 10.9.2.2, and
10.9.3.2 towards the first router's 10.9.3.1.

A case states what the node's manifests and the router's configuration are, whole, and awaits what follows; it need
not know what the case before it left.
"""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

from bgp_world import AgentProcess, World, block, defaults, node, peer, pool, until

from core.resources import BGPPeer, Resource
from tests.interop.tor import NODE4, NODE6, TOR4, TOR6, TOR_AS, Heard, Tor

OWN4, OWN6 = "10.244.1.0/26", "fd44::40/122"
FAR4, FAR6 = "10.244.5.0/26", "fd44::80/122"
TOR_B, NODE_B, ACROSS, ACROSS_B = "10.9.2.1", "10.9.2.2", "10.9.3.1", "10.9.3.2"
POD4, POD6, FAR_POD4, FAR_POD6 = "10.244.1.1", "fd44::41", "10.244.5.1", "fd44::81"

BASE: tuple[Resource, ...] = (
    node("n1", f"{NODE4}/24", f"{NODE6}/64"),
    node("n2", "10.9.7.2/24", "fd09:7::2/64"),
    pool("main", "10.244.0.0/16"),
    pool("six", "fd44::/48"),
    block(OWN4, "n1"),
    block(OWN6, "n1"),
    block(FAR4, "n2"),
    block(FAR6, "n2"),
    defaults(nodeToNodeMeshEnabled=False),
)


def to_tor(**spec: Any) -> BGPPeer:
    """The node's side of the IPv4 session."""
    return peer("tor", spec.pop("peerIP", TOR4), **{"asNumber": TOR_AS, **spec})


def to_tor6(**spec: Any) -> BGPPeer:
    """The node's side of the IPv6 session."""
    return peer("tor6", spec.pop("peerIP", TOR6), **{"asNumber": TOR_AS, **spec})


class Rack:
    """The router and the node of one kind."""

    def __init__(self, world: World, make: type[Tor]) -> None:
        self.world = world
        self.tor_place, self.node_place = make.kind, f"{make.kind}-n1"
        world.wire(self.tor_place, [f"{TOR4}/24", f"{TOR6}/64"], self.node_place, [f"{NODE4}/24", f"{NODE6}/64"])
        for place, pods in ((self.tor_place, (FAR_POD4, FAR_POD6)), (self.node_place, (POD4, POD6))):
            for pod in pods:
                world.run("ip", "-n", world.namespace(place), "addr", "add", pod, "dev", "lo")
        if make.kind == "gobgp":  # which writes no kernel routes
            world.run("ip", "-n", world.namespace(self.tor_place), "route", "add", OWN4, "via", NODE4)
        self.tor = make(world, self.tor_place)
        self._beside: Tor | None = None
        self.tor.start()
        self.agent = AgentProcess(world, self.node_place, node="n1", settle_s=30)
        self.resources: tuple[Resource, ...] = ()

    def beside(self) -> Tor:
        """A second router of the same make, on a wire of its own to the node, and another to the first router."""
        if self._beside is None:
            place = f"{self.tor_place}-b"
            self.world.wire(place, [f"{TOR_B}/24"], self.node_place, [f"{NODE_B}/24"])
            self.world.wire(place, [f"{ACROSS_B}/24"], self.tor_place, [f"{ACROSS}/24"])
            self._beside = type(self.tor)(self.world, place, router_id=TOR_B)
            self._beside.start()
        return self._beside

    def revive(self) -> None:
        """Start the agent again if a case before has been the end of it."""
        if self.agent.process.poll() is not None:
            self.agent.start()

    @property
    def kind(self) -> str:
        """Of which make the router is."""
        return self.tor.kind

    def apply(self, *more: Resource, without: tuple[str, ...] = ()) -> None:
        """The datastore holds the base, with `more` added or put in place of their namesakes, less those named."""
        named = {(each.KIND.name, each.metadata.name): each for each in (*BASE, *more)}
        self.resources = tuple(each for (_, name), each in named.items() if name not in without)
        self.agent.apply(*self.resources)

    def up(self, node: str = NODE4, peer: str = TOR4) -> bool:
        """Whether both ends say that the session is established."""
        return self.tor.session(node).up and self.agent.up(peer)

    def await_up(self, node: str = NODE4, peer: str = TOR4) -> None:
        """Wait for `up`, as short as the router can be made to."""

        def up() -> bool:
            self.tor.prompt()
            return self.up(node, peer)

        until(f"{self.kind} and the node are in session", up, every_s=0.1)

    def await_refused(self, node: str = NODE4, peer: str = TOR4, for_s: float = 2.5) -> None:
        """Wait until neither end is in session, and see that none is for a while: both call again within a second."""
        until("the session is down", lambda: not self.agent.up(peer) and not self.tor.session(node).up, every_s=0.1)
        deadline = time.monotonic() + for_s
        while time.monotonic() < deadline:
            assert not self.agent.up(peer)
            assert not self.tor.session(node).up
            time.sleep(0.1)

    def await_heard(self, *prefixes: str, node: str = NODE4) -> Mapping[str, Heard]:
        """What the router has heard from the node, once it is exactly these prefixes."""
        last: list[Mapping[str, Heard]] = []

        def heard() -> bool:
            last[:] = [self.tor.heard(node)]
            return last[0].keys() == set(prefixes)

        until(f"{self.kind} has heard of {prefixes} and nothing else", heard, every_s=0.1)
        return last[0]

    def await_route(self, prefix: str, matches: Callable[[Heard], bool], what: str, node: str = NODE4) -> Heard:
        """The node's route to `prefix` as the router tells of it, once it `matches`."""
        last: list[Heard] = []

        def holds() -> bool:
            last[:] = [route for key, route in self.tor.heard(node).items() if key == prefix]
            return bool(last) and matches(last[0])

        try:
            until(f"{self.kind}: {prefix} {what}", holds, every_s=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says {last}") from None
        return last[0]

    def routes(self, version: int = 4) -> dict[str, Any]:
        """What the node has learnt, in its kernel."""
        said = self.world.routes(self.node_place, version=version)
        return {str(ip_network(prefix)): route for prefix, route in said.items()}

    def await_learnt(self, *prefixes: str, version: int = 4) -> dict[str, Any]:
        """The node's learnt kernel routes, once they are exactly these."""
        until(f"the kernel holds {prefixes}", lambda: self.routes(version).keys() == set(prefixes), every_s=0.02)
        return self.routes(version)

    def reason(self, peer: str = TOR4) -> str:
        """What the node's status says of a session, beside its state."""
        return self.agent.session(peer).reason

    @contextmanager
    def pinging(self, source: str = POD4, target: str = FAR_POD4) -> Iterator[Callable[[], int]]:
        """Ping every 10 ms, pod to far pod, while in here; how many replies are missing before the last that came."""
        seen: list[int] = []
        argv = ("ping", "-n", "-i", "0.01", "-I", source, target)
        process = self.world.start(self.node_place, *argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

        def listen() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                seen.extend(map(int, re.findall(r"bytes from .*icmp_seq=(\d+)", line)))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            until("the first reply", lambda: seen)
            yield lambda: max(seen) - len(set(seen))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=10)
            thread.join(timeout=10)

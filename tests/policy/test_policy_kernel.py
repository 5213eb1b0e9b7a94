"""The rendered rules in the real kernel: what it accepts of them, and what it does with real packets.

    one namespace owns every address      raw packets, each with its number as SO_MARK
      output hook, priority 0             the rules under test, chosen by the endpoint's number in the mark
      output hook, priority 10            notes the mark of what came through, and drops it

That the number is still there shows that the low half of the mark is left alone, and how it is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

import pytest
from policy_cluster import packet, snapshot
from policy_kernel import namespace, run, text_of
from policy_oracle import Flow, Oracle
from policy_worlds import EVERYWHERE, World, flows, worlds

from core.resources.network import WorkloadEndpoint
from core.resources.policy import Direction
from policy.compile import Compiled, compile
from policy.evaluate import lookup
from policy.keep import call
from policy.model import Verdict
from policy.render import machinery, render

SEND = """
import json, socket, struct, sys
for number, source, destination, protocol, sport, dport, icmp, short in json.load(sys.stdin):
    if icmp is not None:
        payload = struct.pack('!BBHI', *icmp, 0, 0)
    elif protocol == 6:
        payload = struct.pack('!HHIIBBHHH', sport, dport, 1, 0, 0x50, 2, 1024, 0, 0)
    elif protocol == 17:
        payload = struct.pack('!HHHH', sport, dport, 8, 0)
    elif protocol == 132:
        payload = struct.pack('!HHII', sport, dport, 0, 0)
    else:
        payload = b'12345678'
    family = socket.AF_INET6 if ':' in source else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, number)
        raw.bind((source, 0))
        try:
            raw.sendto(payload[:2] if short else payload, (destination, 0))
        except PermissionError:
            pass  # the output hook dropped it, and says so to the sender
"""

PACKETS = 40
SHORT = 5
NOTE = """
table inet noted {
  set seen { type mark; size 65535; flags dynamic; }
  chain note { type filter hook output priority 10; policy drop; add @seen { meta mark & 0x0000ffff }; }
}
"""


@dataclass(frozen=True)
class Sent:
    """One packet; `short` cuts its transport header to two bytes."""

    number: int
    flow: Flow
    allowed: bool
    short: bool = False

    def wire(self) -> list[object]:
        flow = self.flow
        ports = [flow.sport or 0, flow.dport or 0]
        return [self.number, flow.source, flow.destination, flow.protocol, *ports, flow.icmp, self.short]


@pytest.mark.kernel
def test_nft_accepts_every_ruleset() -> None:
    with namespace() as name:
        for seed in range(100, 130):
            world: World = worlds().draw(Random(seed))
            parts = {"machinery": machinery(["judge"]), **render(compile(snapshot(world.resources), world.local))}
            run("ip", "netns", "exec", name, "nft", "--check", "-f", "-", text=text_of(parts, ["chain judge { }"]))


def packets(world: World, compiled: Compiled, direction: Direction, rng: Random) -> list[Sent]:
    """Packets of every endpoint with what the oracle says of them; of cut-off ones, what the tables say."""
    state, oracle = snapshot(world.resources), Oracle(world.resources)
    sent = []
    for place, endpoint in enumerate(world.local):
        manifest = state.of(WorkloadEndpoint)[endpoint]
        for number in range(PACKETS + SHORT):
            flow, mark = flows(endpoint, direction).draw(rng), (place + 1 << 12) + number
            if number < PACKETS:
                sent.append(Sent(mark, flow, oracle.answer(manifest, str(direction), flow).allowed))
            elif flow.protocol in (6, 17, 132):
                ends = (flow.source, flow.destination, flow.protocol)
                cut = lookup(compiled, endpoint, direction, packet(*ends, ingress=direction is Direction.INGRESS))
                sent.append(Sent(mark, flow, cut.verdict is Verdict.ALLOW, short=True))
    return sent


@pytest.mark.kernel
@pytest.mark.parametrize("direction", list(Direction))
def test_the_kernel_decides_as_the_rules_do(direction: Direction) -> None:
    """What the kernel lets through is what the rules allow, packet by packet."""
    total = allowed = 0
    for seed in range(8):
        rng = Random(seed)
        world: World = worlds().draw(rng)
        compiled = compile(snapshot(world.resources), world.local)
        sent = packets(world, compiled, direction, rng)
        expected = {each.number for each in sent if each.allowed}
        chains = [compiled.chains[key][0 if direction is Direction.INGRESS else 1] for key in world.local]
        places = range(1, len(chains) + 1)
        dispatch = [
            "chain judged {",
            *(f"meta mark & 0xf000 == {place << 12:#x} goto judged-{place}" for place in places),
            "drop",
            "}",
            *(
                f"chain judged-{place} {{ {'; '.join((*call(f'judge-{place}'), 'goto settled'))}; }}"
                for place in places
            ),
            *(f"chain judge-{place} {{ goto {chain}; }}" for place, chain in zip(places, chains, strict=True)),
            "chain output { type filter hook output priority 0; policy drop; jump judged; accept; }",
        ]
        parts = {"machinery": machinery([f"judge-{place}" for place in places]), **render(compiled)}
        with namespace([*EVERYWHERE, "10.0.2.2", "10.0.2.3"]) as name:
            inside = ("ip", "netns", "exec", name)
            run(*inside, "nft", "-f", "-", text=text_of(parts, dispatch) + NOTE)
            run(*inside, "python3", "-c", SEND, text=json.dumps([each.wire() for each in sent]))
            listed = json.loads(run(*inside, "nft", "-j", "list", "set", "inet", "noted", "seen"))
        seen = next(each["set"] for each in listed["nftables"] if "set" in each).get("elem", [])
        assert {each["elem"]["val"] if isinstance(each, dict) else each for each in seen} == expected
        total, allowed = total + len(sent), allowed + len(expected)
    assert 0.1 * total < allowed < 0.9 * total

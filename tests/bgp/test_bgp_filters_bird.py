"""Filters held against BIRD's own language: each rule in the words that Calico gives to BIRD, evaluated by BIRD."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from bgp_world import Bird, World, made

from bgp.attributes import Path
from bgp.paths.filters import Action, Context, Direction, compiled, judge
from core.addr import Network
from core.resources import BGPFilter

OPERATORS = {"Equal": "=", "NotEqual": "!=", "In": "~", "NotIn": "!~"}
BLOCK = ip_network("10.0.0.0/26")
PATH = Path(next_hop=ip_address("10.9.0.1"), as_path=(1,))


@dataclass(frozen=True)
class Case:
    """A rule, a route, and what BIRD is asked."""

    rule: dict[str, Any]
    expression: str
    prefix: Network = BLOCK
    path: Path = PATH
    device: str = ""

    @property
    def matches(self) -> bool:
        resource = made(BGPFilter, "f", {f"exportV{self.prefix.version}": [{"action": "Accept", **self.rule}]})
        context = Context(internal=False, device=self.device)
        found = judge([compiled(resource)], Direction.EXPORT, self.prefix, self.path, context)
        return found.action is Action.ACCEPT


def prefixes(dice: random.Random, count: int) -> Iterator[Case]:
    for _ in range(count):
        version = dice.choice([4, 6])
        cidr, prefix = network(dice, version), network(dice, version)
        operator = dice.choice(list(OPERATORS))
        rule: dict[str, Any] = {"cidr": str(cidr), "matchOperator": operator}
        pattern = str(cidr)
        if operator in ("In", "NotIn") and dice.random() < 0.7:
            most = dice.randint(cidr.prefixlen, cidr.max_prefixlen)
            least = dice.randint(0, most)
            rule["prefixLength"] = {"min": least, "max": most}
            pattern = f"[ {cidr}{{{max(least, cidr.prefixlen)},{most}}} ]"
        yield Case(rule, f"{prefix} {OPERATORS[operator]} {pattern}", prefix=prefix)


def network(dice: random.Random, version: int) -> Network:
    """One of few, so that they often meet."""
    if version == 4:
        return ip_network(((10 << 24) | dice.getrandbits(2) << 16, dice.randint(14, 32)), strict=False)
    return ip_network(((0xFD << 120) | dice.getrandbits(2) << 72, dice.randint(54, 128)), strict=False)


def paths(dice: random.Random, count: int) -> Iterator[Case]:
    for _ in range(count):
        path = [dice.randint(1, 2) for _ in range(dice.randint(0, 3))]
        wanted = [dice.randint(1, 2) for _ in range(dice.randint(1, 3))]
        spelt = "+empty+"
        for number in reversed(path):
            spelt = f"prepend({spelt}, {number})"
        heard = Path(next_hop=PATH.next_hop, as_path=tuple(path))
        yield Case({"asPathPrefix": wanted}, f"{spelt} ~ [= {' '.join(map(str, wanted))} * =]", path=heard)


def devices(names: Sequence[str], patterns: Sequence[str]) -> Iterator[Case]:
    for name in names:
        for pattern in patterns:
            yield Case({"interface": pattern}, f'"{name}" ~ "{pattern}"', device=name)


def communities(values: Sequence[str]) -> Iterator[Case]:
    for has in values:
        for wanted in values:
            empty = "-empty-" if has.count(":") == 1 else "---empty---"
            spelt_has, spelt_wanted = (f"({each.replace(':', ',')})" for each in (has, wanted))
            if has.count(":") == wanted.count(":"):
                heard = Path(next_hop=PATH.next_hop, communities=(has,))
                rule = {"communities": {"values": [wanted]}}
                yield Case(rule, f"{spelt_wanted} ~ add({empty}, {spelt_has})", path=heard)


def test_rules_match_what_bird_says_they_do(world: World) -> None:
    dice = random.Random(4)
    cases = [
        *prefixes(dice, 400),
        *paths(dice, 60),
        *devices(("eth0", "eth1.20", "muslin.ipip", "e"), ("*", "eth*", "eth?", "eth?.2*", "*.*", "e", "eth", "*0")),
        *communities(("64512:1", "64512:2", "65535:65281", "64512:1:2", "64512:1:3")),
    ]
    bird = Bird(world, "judge", "10.9.0.1")
    bird.start("")
    asked = "".join(f"eval {case.expression}\n" for case in cases)
    answers = subprocess.run(
        ["birdc", "-s", str(bird.control)], input=asked, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    said = [answer == "TRUE" for answer in re.findall(r"(TRUE|FALSE)$", answers, re.MULTILINE)]
    assert len(said) == len(cases), answers[-2000:]
    wrong = [case for case, expected in zip(cases, said, strict=True) if case.matches is not expected]
    assert not wrong, wrong[:5]
    assert 100 < sum(said) < len(said) - 100

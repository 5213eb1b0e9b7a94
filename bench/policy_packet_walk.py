"""policy-packet-walk: the same policies looked up, as felix writes them, against chains that are walked.

The peer is `bench.rule_walking`, Calico's way to write rules, in a node beside ours. A walk over 10,000 rules each way
takes milliseconds, so few packets take it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from bench.datagrams import Path, looked_up, walked
from bench.model import Bench, Figures, Subjects, at_most
from linux.rights import require_net_admin

BENCH: Final = Bench(
    name="policy-packet-walk",
    what="one packet of a new flow, pod to pod in one node, 1,000 rules in force each way",
    unit="ns/packet",
    peer="rule-walking chains",
    targets=(at_most(1 / 20),),
    runs=9,
)

RULES: Final = 1000
_PACKETS: Final = 10_000
_WALKED: Final = {10: 10_000, 100: 5000, 1000: 1000, 10_000: 50}
"""By the number of rules: packets a turn."""


@contextmanager
def subjects() -> Iterator[Subjects]:
    """A node of two pods for each number of rules and way to write them."""
    require_net_admin()
    with ExitStack() as stack:
        ours = {rules: stack.enter_context(looked_up(rules)) for rules in _WALKED}
        peers = {rules: stack.enter_context(walked(rules)) for rules in _WALKED}
        yield Subjects(_turn(ours, dict.fromkeys(_WALKED, _PACKETS)), _turn(peers, _WALKED))


def _turn(paths: Mapping[int, Path], packets: Mapping[int, int]) -> Callable[[], Figures]:
    def turn() -> Figures:
        costs = {rules: path.cost(packets[rules]) for rules, path in paths.items()}
        return Figures(costs[RULES], {f"at {rules:,} rules": cost for rules, cost in costs.items() if rules != RULES})

    return turn

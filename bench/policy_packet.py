"""policy-packet: what 10, 100, 1,000 and 10,000 rules each way cost a packet that policy must judge, against none.

One node for each number of rules, all programmed by felix's own code beforehand; turns only send. See
`bench.many_policies` for the rules, `bench.datagrams` for what is timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from bench.datagrams import looked_up
from bench.model import Bench, Figures, Subjects, at_most
from linux.rights import require_net_admin

BENCH: Final = Bench(
    name="policy-packet",
    what="one packet of a new flow, pod to pod in one node, 10,000 rules in force each way",
    unit="ns/packet",
    peer="the same without policy",
    targets=(at_most(1.5),),
    runs=9,
)

PACKETS: Final = 30_000
_FEWER: Final = (10, 100, 1000)
_MOST: Final = 10_000


@contextmanager
def subjects() -> Iterator[Subjects]:
    """Five nodes of two pods."""
    require_net_admin()
    with ExitStack() as stack:
        paths = {rules: stack.enter_context(looked_up(rules)) for rules in (0, *_FEWER, _MOST)}

        def ours() -> Figures:
            fewer = {f"at {rules:,} rules": paths[rules].cost(PACKETS) for rules in _FEWER}
            return Figures(paths[_MOST].cost(PACKETS), fewer)

        yield Subjects(ours, lambda: paths[0].cost(PACKETS))

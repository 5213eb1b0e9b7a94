"""bgp-withdraw: 10,000 own prefixes taken back from the ToR's table, from our desired state; BIRD as the node beside
it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench.announcing import announcing
from bench.model import Bench, Subjects, at_most

BENCH: Final = Bench(
    name="bgp-withdraw",
    what="10,000 own prefixes withdrawn from the ToR's table",
    unit="s",
    peer="BIRD as the node",
    targets=(at_most(3, absolute=True),),
)


@contextmanager
def subjects() -> Iterator[Subjects]:
    """See `bench.announcing`."""
    with announcing() as sides:
        yield Subjects(lambda: sides.ours()[1], lambda: sides.peer()[1])

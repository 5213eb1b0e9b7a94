"""bgp-announce: 10,000 own prefixes into the ToR's table, from our desired state; BIRD as the node beside it.

How far a supported way goes: ExaBGP's own text commands manage some 3,000 prefixes a second to one session and half of
that to two, grouped as well as its API allows, for it deep-copies each prefix for each of them. With two commands
registered through its own decorator (bgp.entry), which hand the prefixes to the same `inject_change`, it is 20,000 to
30,000 a second to one session and nearly as many to two; then parsing, its table and the encoder share what is left.
Its encoder alone writes 220,000 and more; nothing that it offers reaches that without its table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench.announcing import PREFIXES, announcing
from bench.model import Bench, Subjects, at_least

BENCH: Final = Bench(
    name="bgp-announce",
    what="10,000 own prefixes into the ToR's table",
    unit="prefixes/s",
    peer="BIRD as the node",
    targets=(at_least(2500, absolute=True),),
)


@contextmanager
def subjects() -> Iterator[Subjects]:
    """See `bench.announcing`."""
    with announcing() as sides:
        yield Subjects(lambda: PREFIXES / sides.ours()[0], lambda: PREFIXES / sides.peer()[0])

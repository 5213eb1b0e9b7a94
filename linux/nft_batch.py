"""A batch on an nftables table that is only elements and counters, in the kernel's own bytes.

That is most of what happens on a node: a pod comes, an address enters a selector. libnftables would first list the
table (11 ms where 250 stacks are), this does not look at it. What has chains, rules or sets in it goes whole through
libnftables (`linux.nft_script`), so that a batch is one transaction either way.

The order is the script's: elements go, then counters; counters come, then elements. An element with a new value goes
and comes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from core.nftables import Element, Set
from core.reconcile import Plan
from linux import nft_wire as wire
from linux.libnftables import NftRefused
from linux.netlink import Refused
from linux.nft_objects import CounterName, Object, SetName, Value

_Requests = Callable[[str, str, Sequence[bytes]], Iterator[tuple[int, bytes]]]


@dataclass(frozen=True, slots=True)
class Request:
    """One message, whose it is, and at which byte the part of each begins."""

    message: bytes
    objects: Sequence[Object]
    starts: Sequence[int] = (0,)

    def owner(self, offset: int | None) -> Object:
        """Whom an error at `offset` is about; of a kernel that does not say where, the first."""
        return self.objects[max(bisect_right(self.starts, offset or 0) - 1, 0)]


def requests(table: str, plan: Plan[Object, Value], shape: Mapping[Object, Value]) -> list[Request] | None:
    """The transaction that carries out `plan` on a table with the sets and counters of `shape`.

    None when it is not for this module to write.
    """
    sets: dict[str, Set] = {}
    for key in (*plan.upsert, *plan.delete):
        if isinstance(key, Element):
            if key.set not in sets:
                made = shape.get(SetName(key.set))
                if not isinstance(made, Set) or not wire.speaks(made):
                    return None
                sets[key.set] = made
        elif not isinstance(key, CounterName):
            return None
    stale: Iterable[Object] = (*plan.delete, *plan.replace)
    return [
        *_elements(table, sets, ((key, None) for key in stale), wire.delete_elements),
        *(Request(wire.delete_counter(table, key.name), (key,)) for key in plan.delete if isinstance(key, CounterName)),
        *(Request(wire.add_counter(table, key.name), (key,)) for key in plan.upsert if isinstance(key, CounterName)),
        *_elements(table, sets, plan.upsert.items(), wire.add_elements),
    ]


def blame(
    plan: Plan[Object, Value], sent: Sequence[Request], refused: Mapping[int, Refused]
) -> Mapping[Object, Exception]:
    """Each object of the plan with its error: the kernel's own for those it points at; the others were held back."""
    blamed: dict[Object, Exception] = {}
    for index, error in refused.items():
        owner = sent[index].owner(error.offset)
        blamed.setdefault(owner, NftRefused(f"{error}: {_spelt(owner, plan)}"))
    held = NftRefused(f"held back, because the kernel refused the batch: {next(iter(blamed.values()))}")
    return {key: blamed.get(key, held) for key in (*plan.upsert, *plan.delete)}


def _elements(
    table: str, sets: Mapping[str, Set], wanted: Iterable[tuple[Object, Value | None]], pack: _Requests
) -> Iterator[Request]:
    by_set: dict[str, list[tuple[Element, str | None]]] = {}
    for key, value in wanted:
        if isinstance(key, Element):
            by_set.setdefault(key.set, []).append((key, None if value is None else str(value)))
    for name, items in by_set.items():
        encode = wire.elements(sets[name])
        entries = [encode(key.key, value) for key, value in items]
        owners = iter(zip(items, entries, strict=True))
        for count, message in pack(table, name, entries):
            carried = list(islice(owners, count))
            starts = accumulate((len(entry) for _, entry in carried[:-1]), initial=wire.list_start(table, name))
            yield Request(message, [key for (key, _), _ in carried], list(starts))


def _spelt(owner: Object, plan: Plan[Object, Value]) -> str:
    if not isinstance(owner, Element):
        return f"counter {owner.name}"
    value = plan.upsert.get(owner, "")
    return f"element {owner.set} {{ {owner.key}{f' : {value}' if value else ''} }}"

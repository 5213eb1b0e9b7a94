"""A batch on an nftables table in the kernel's own bytes, where all of it can be said so.

That is nearly all that happens on a node: a pod comes, an address enters a selector, a policy's content becomes a chain
and maps of its own. libnftables would first list the table (11 ms where 250 stacks are), this does not look at it. A
batch with anything else in it - a base chain, a set whose type changes, a rule that `linux.nft_expr` does not know -
goes whole through libnftables (`linux.nft_script`), so that it is one transaction either way.

The order is the script's: elements go, the rules of changed and of stale chains, sets, chains, counters; then come
counters, sets, chains, rules, elements. An element with a new value goes and comes.
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
from linux.nft_expr import encode
from linux.nft_objects import ChainBody, ChainName, CounterName, Object, SetName, Value, tagged

_Requests = Callable[[str, str, Sequence[bytes]], Iterator[tuple[int, bytes]]]


@dataclass(frozen=True, slots=True)
class Request:
    """One message, whose it is, and at which byte the part of each begins. `rule` is the text of a rule."""

    message: bytes
    objects: Sequence[Object]
    starts: Sequence[int] = (0,)
    rule: str = ""

    def owner(self, offset: int | None) -> Object:
        """Whom an error at `offset` is about; of a kernel that does not say where, the first."""
        return self.objects[max(bisect_right(self.starts, offset or 0) - 1, 0)]


def requests(table: str, plan: Plan[Object, Value], shape: Mapping[Object, Value]) -> list[Request] | None:
    """The transaction that carries out `plan` on a table with the chains, sets and counters of `shape`.

    None when it is not for this module to write.
    """
    change = _Change(table, plan, shape)
    if not change.is_ours():
        return None
    rules = change.rules()
    return None if rules is None else [*change.take_down(), *change.build_up(rules)]


def blame(
    plan: Plan[Object, Value], sent: Sequence[Request], refused: Mapping[int, Refused]
) -> Mapping[Object, Exception]:
    """Each object of the plan with its error: the kernel's own for those it points at; the others were held back."""
    blamed: dict[Object, Exception] = {}
    for index, error in refused.items():
        owner = sent[index].owner(error.offset)
        blamed.setdefault(owner, NftRefused(f"{error}: {_spelt(owner, plan, sent[index])}"))
    held = NftRefused(f"held back, because the kernel refused the batch: {next(iter(blamed.values()))}")
    return {key: blamed.get(key, held) for key in (*plan.upsert, *plan.delete)}


@dataclass(frozen=True, slots=True)
class _Change:
    """A plan, and the chains, sets and counters of the table that it is for."""

    table: str
    plan: Plan[Object, Value]
    shape: Mapping[Object, Value]

    def is_ours(self) -> bool:
        """Whether all of the plan but its rules can be written here."""
        named = {key.set for key in (*self.plan.upsert, *self.plan.delete) if isinstance(key, Element)}
        for name in named:
            made = self.find(name)
            if made is None or not wire.speaks(made):
                return False
        return all(self._makes(key, value) for key, value in self.plan.upsert.items())

    def _makes(self, key: Object, value: Value) -> bool:
        match key, value:
            case SetName(), Set():  # a table that nobody has read may not be there
                return bool(self.shape) and key not in self.shape and wire.makes(value)
            case ChainName(), ChainBody(hook=None):
                known = self.shape.get(key)
                return bool(self.shape) and (known is None or (isinstance(known, ChainBody) and known.hook is None))
            case ChainName(), _:
                return False
        return True

    def find(self, name: str) -> Set | None:
        """The set of that name, as it will be."""
        key = SetName(name)
        made = self.plan.upsert.get(key, self.shape.get(key))
        return made if isinstance(made, Set) else None

    def rules(self) -> list[Request] | None:
        """The rules of all chains that are written; None when one of them is not in the vocabulary."""
        found = []
        for key, value in self.plan.upsert.items():
            if isinstance(key, ChainName) and isinstance(value, ChainBody):
                for rule in value.rules:
                    encoded = encode(tagged(rule, value.digest), self.find)
                    if encoded is None:
                        return None
                    found.append(Request(wire.add_rule(self.table, key.name, encoded), (key,), rule=rule))
        return found

    def take_down(self) -> Iterator[Request]:
        """What goes. A set takes its elements with it."""
        table, delete = self.table, self.plan.delete
        chains = [key for key in delete if isinstance(key, ChainName)]
        sets = [key for key in delete if isinstance(key, SetName)]
        dropped = {key.name for key in sets}
        stale = (key for key in (*delete, *self.plan.replace) if isinstance(key, Element) and key.set not in dropped)
        yield from self._elements(((key, None) for key in stale), wire.delete_elements)
        for key in (*self.plan.upsert, *chains):
            if isinstance(key, ChainName) and key in self.shape:
                yield Request(wire.flush_chain(table, key.name), (key,))
        yield from (Request(wire.delete_set(table, key.name), (key,)) for key in sets)
        yield from (Request(wire.delete_chain(table, key.name), (key,)) for key in chains)
        for gone in delete:
            if isinstance(gone, CounterName):
                yield Request(wire.delete_counter(table, gone.name), (gone,))

    def build_up(self, rules: Iterable[Request]) -> Iterator[Request]:
        """What comes."""
        table, wanted = self.table, self.plan.upsert
        yield from (Request(wire.add_counter(table, k.name), (k,)) for k in wanted if isinstance(k, CounterName))
        sets = ((key, made) for key, made in wanted.items() if isinstance(key, SetName) and isinstance(made, Set))
        for number, (key, made) in enumerate(sets, 1):
            yield Request(wire.add_set(table, key.name, made, number), (key,))
        for chain in wanted:
            if isinstance(chain, ChainName) and chain not in self.shape:
                yield Request(wire.add_chain(table, chain.name), (chain,))
        yield from rules
        yield from self._elements(wanted.items(), wire.add_elements)

    def _elements(self, wanted: Iterable[tuple[Object, Value | None]], pack: _Requests) -> Iterator[Request]:
        by_set: dict[str, list[tuple[Element, str | None]]] = {}
        for key, value in wanted:
            if isinstance(key, Element):
                by_set.setdefault(key.set, []).append((key, None if value is None else str(value)))
        for name, items in by_set.items():
            made = self.find(name)
            assert made is not None, "is_ours has found it"
            encode_one = wire.elements(made)
            entries = [encode_one(key.key, value) for key, value in items]
            owners = iter(zip(items, entries, strict=True))
            for count, message in pack(self.table, name, entries):
                carried = list(islice(owners, count))
                starts = accumulate(
                    (len(entry) for _, entry in carried[:-1]), initial=wire.list_start(self.table, name)
                )
                yield Request(message, [key for (key, _), _ in carried], list(starts))


def _spelt(owner: Object, plan: Plan[Object, Value], sent: Request) -> str:
    match owner:
        case Element():
            value = plan.upsert.get(owner, "")
            return f"element {owner.set} {{ {owner.key}{f' : {value}' if value else ''} }}"
        case ChainName():
            return f"chain {owner.name}{f': {sent.rule}' if sent.rule else ''}"
        case SetName():
            return f"set {owner.name}"
    return f"counter {owner.name}"

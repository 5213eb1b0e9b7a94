"""A batch on an nftables table as nft's own language: the transaction, and whose each command is.

The order inside the transaction makes every step legal; the kernel shows the whole of it to packets at once:

    take down    stale and changed elements, the rules of changed and of stale chains,
                 stale sets and those whose type changes, stale chains and those whose hook changes, stale counters
    build up     counters, sets, chains (declared empty), rules, elements

A counter object that is there is never written again: it holds the counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from core.nftables import Element, Set
from core.reconcile import Plan
from linux.libnftables import NftRefused
from linux.nft_objects import ChainBody, ChainName, CounterName, Object, SetName, Value, tagged

_ELEMENTS_A_LINE: Final = 500
_COMPLAINT: Final = re.compile(r"^[^:\n]+:(\d+):(\d+)-\d+: Error: (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Line:
    """One command, and whose it is: the objects by the column at which each begins."""

    text: str
    objects: tuple[tuple[int, Object], ...] = ()


def script(table: str, plan: Plan[Object, Value], known: Mapping[Object, Value]) -> Iterator[Line]:
    """The transaction that carries out `plan` on a table that holds `known`."""
    change = _Change(
        table,
        plan,
        known,
        sets={key: value for key, value in plan.upsert.items() if isinstance(key, SetName) and isinstance(value, Set)},
        chains={k: v for k, v in plan.upsert.items() if isinstance(k, ChainName) and isinstance(v, ChainBody)},
    )
    yield Line(f"add table {table}")
    for chain, body in change.chains.items():
        if chain not in known:
            yield _declare(table, chain, body)
    yield from change.take_down()
    yield from change.build_up()


@dataclass(frozen=True, slots=True)
class _Change:
    """A plan, and its sets and chains that are written."""

    table: str
    plan: Plan[Object, Value]
    known: Mapping[Object, Value]
    sets: Mapping[SetName, Set]
    chains: Mapping[ChainName, ChainBody]

    @property
    def remade(self) -> list[SetName]:
        """Sets whose type changes."""
        return [key for key in self.sets if key in self.known]

    def take_down(self) -> Iterator[Line]:
        rehooked = [k for k, v in self.chains.items() if k in self.known and _hook(self.known[k]) != v.hook]
        gone_sets = self.remade + [key for key in self.plan.delete if isinstance(key, SetName)]
        gone_chains = rehooked + [key for key in self.plan.delete if isinstance(key, ChainName)]
        changed = [key for key in self.chains if key in self.known]
        written = (key for key in (*self.plan.delete, *self.plan.upsert) if isinstance(key, Element))
        dropped = {key.name for key in gone_sets}
        stale = ((key, "") for key in written if key in self.known and key.set not in dropped)
        yield from _elements("delete", self.table, stale, self.known.get)
        for chain in dict.fromkeys(changed + gone_chains):
            yield _line(f"flush chain {self.table} {chain.name}", chain)
        for each in gone_sets:
            yield _line(f"delete set {self.table} {each.name}", each)
        for chain in gone_chains:
            yield _line(f"delete chain {self.table} {chain.name}", chain)
        for counter in self.plan.delete:
            if isinstance(counter, CounterName):
                yield _line(f"delete counter {self.table} {counter.name}", counter)

    def build_up(self) -> Iterator[Line]:
        for counter in self.plan.upsert:
            if isinstance(counter, CounterName) and counter not in self.known:
                yield _line(f"add counter {self.table} {counter.name}", counter)
        for name, made in self.sets.items():
            yield _line(f"add {'map' if made.value else 'set'} {self.table} {name.name} {_typed(made)}", name)
        for chain, body in self.chains.items():
            if chain in self.known:
                yield _declare(self.table, chain, body)
        for chain, body in self.chains.items():
            for rule in body.rules:
                yield _line(f"add rule {self.table} {chain.name} {tagged(rule, body.digest)}", chain)
        yield from _elements("add", self.table, self._kept(), self._after)
        yield from _elements("add", self.table, self.plan.upsert.items(), self._after)

    def _kept(self) -> Iterator[tuple[Object, Value]]:
        """The elements of remade sets that the plan leaves as they are."""
        lost = {each.name for each in self.remade}
        for key, value in self.known.items() if lost else ():
            if isinstance(key, Element) and key.set in lost and not self._planned(key):
                yield key, value

    def _planned(self, key: Object) -> bool:
        return key in self.plan.delete or key in self.plan.upsert

    def _after(self, key: SetName) -> Value | None:
        return self.sets.get(key) or self.known.get(key)


def _hook(value: Value) -> object:
    return value.hook if isinstance(value, ChainBody) else None


def _line(text: str, owner: Object) -> Line:
    return Line(text, ((0, owner),))


def _declare(table: str, chain: ChainName, written: ChainBody) -> Line:
    hook = written.hook
    base = f" {{ type {hook.type} hook {hook.hook} priority {hook.priority}; policy accept; }}" if hook else ""
    return _line(f"add chain {table} {chain.name}{base}", chain)


def _typed(made: Set) -> str:
    value = f" : {made.value}" if made.value else ""
    flags = " flags interval;" if made.interval else ""
    counter = " counter;" if made.counter else ""
    return f"{{ type {' . '.join(made.key)}{value};{flags}{counter} }}"


def _elements(
    verb: str, table: str, wanted: Iterable[tuple[Object, object]], find: Callable[[SetName], Value | None]
) -> Iterator[Line]:
    """Commands of at most `_ELEMENTS_A_LINE` elements of one set each."""
    by_set: dict[str, list[tuple[Element, object]]] = {}
    for key, value in wanted:
        if isinstance(key, Element):
            by_set.setdefault(key.set, []).append((key, value))
    for name, items in by_set.items():
        made = find(SetName(name))
        spell, quote = _speller(made), '"' if isinstance(made, Set) and made.value == "counter" else ""
        for start in range(0, len(items), _ELEMENTS_A_LINE):
            texts, objects = [], []
            head = f"{verb} element {table} {name} {{ "
            column = len(head)
            for key, value in items[start : start + _ELEMENTS_A_LINE]:
                texts.append(f"{spell(key.key)} : {quote}{value}{quote}" if value else spell(key.key))
                objects.append((column, key))
                column += len(texts[-1]) + 2
            yield Line(f"{head}{', '.join(texts)} }}", tuple(objects))


def _speller(made: Value | None) -> Callable[[str], str]:
    """How a set's keys are written in a command.

    nft 1.0.6 swaps the bytes of a single mark when it deletes from a set of concatenated intervals (and then finds
    nothing); a range of one is deleted rightly, so that is what is written.
    """
    if not isinstance(made, Set) or not made.interval or len(made.key) == 1 or "mark" not in made.key:
        return str
    kinds = made.key

    def spell(key: str) -> str:
        parts = zip(kinds, key.split(" . "), strict=True)
        return " . ".join(f"{part}-{part}" if kind == "mark" and "-" not in part else part for kind, part in parts)

    return spell


def blame(plan: Plan[Object, Value], lines: Sequence[Line], complaint: str) -> Mapping[Object, Exception]:
    """Each object of the plan with its error: nft's own for those it points at, and why it waits for the others."""
    blamed: dict[Object, Exception] = {}
    for number, column, reason in _COMPLAINT.findall(complaint):
        line = lines[int(number) - 1]
        owners = [each for start, each in line.objects if start < int(column)]
        if owners:
            blamed.setdefault(owners[-1], NftRefused(f"{reason}: {_excerpt(line.text, int(column))}"))
    first = next(iter(blamed.values()), NftRefused(complaint))
    held = NftRefused(f"held back, because nft refused the batch: {first}") if blamed else first
    return {key: blamed.get(key, held) for key in (*plan.upsert, *plan.delete)}


def _excerpt(text: str, column: int) -> str:
    """The part of a command around the marked place, for a person to read."""
    return text if len(text) <= 200 else f"...{text[max(0, column - 60) : column + 100]}..."

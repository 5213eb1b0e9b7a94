"""Our nftables table, and no other: read as a flat mapping, changed by one transaction a batch.

The order inside the transaction makes every step legal; the kernel shows the whole of it to packets at once:

    take down    stale and changed elements, the rules of changed and of stale chains,
                 stale sets and those whose type changes, stale chains and those whose hook changes
    build up     sets, chains (declared empty), rules, elements

A batch is all or nothing. What nft complains of is told by object where its message points at one; everything else
in the batch was held back with it and says so. An object that somebody else removed or added meanwhile makes the
first try fail; the driver then reads again and tries once more with what is still different.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from core.names import NFT_TABLE
from core.nftables import Element, Set
from core.reconcile import Plan
from linux.libnftables import Nft, NftRefused
from linux.nft_json import read_table
from linux.nft_monitor import Monitor
from linux.nft_objects import ChainBody, ChainName, Object, SetName, Value, tagged

_ELEMENTS_A_LINE: Final = 500
_COMPLAINT: Final = re.compile(r"^[^:\n]+:(\d+):(\d+)-\d+: Error: (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Line:
    """One command, and whose it is: the objects by the column at which each begins."""

    text: str
    objects: tuple[tuple[int, Object], ...] = ()


class NftDriver:
    """The table `inet NAME` of the namespace in which the driver is made (a `core.reconcile.Driver`)."""

    name = "nft"

    def __init__(self, table: str = NFT_TABLE) -> None:
        self._table = table
        self._nft = Nft()
        self._lock = asyncio.Lock()
        self._known: dict[Object, Value] | None = None
        self._monitor: Monitor | None = None

    def close(self) -> None:
        """Let go of the library; the table stays."""
        self._nft.close()

    async def read(self) -> Mapping[Object, Value]:
        """Everything in the table; empty when there is no such table. Raises NftRefused if nft cannot tell."""
        async with self._lock:
            return dict(await asyncio.to_thread(self._read))

    async def apply(self, plan: Plan[Object, Value]) -> Mapping[Object, Exception]:
        """Make one batch so, or none of it."""
        async with self._lock:
            if self._monitor is not None:
                self._monitor.begin()
            commits = 0
            try:
                failed = await asyncio.to_thread(self._apply, plan)
                commits = 0 if failed else 1
            finally:
                if self._monitor is not None:
                    self._monitor.end(commits)
        return failed

    async def remove(self) -> None:
        """Remove the table and everything in it, whoever put it there; no such table is a success. For clean-up."""
        async with self._lock:
            self._known = None
            await asyncio.to_thread(self._nft.run, f"add table inet {self._table}\ndelete table inet {self._table}\n")

    async def foreign_changes(self) -> AsyncIterator[str]:
        """Who changed our table, each time somebody else did: the moment to distrust what is believed of it."""
        with contextlib.closing(Monitor(self._table)) as monitor:
            self._monitor = monitor
            try:
                while True:
                    yield await monitor.foreign()
            finally:
                self._monitor = None

    def _list(self) -> Sequence[Mapping[str, Any]]:
        tables = json.loads(self._nft.ask("list tables inet"))["nftables"]
        if not any(entry.get("table", {}).get("name") == self._table for entry in tables):
            return ()
        listed: Sequence[Mapping[str, Any]] = json.loads(self._nft.ask(f"list table inet {self._table}"))["nftables"]
        return listed

    def _read(self) -> dict[Object, Value]:
        self._known = None
        self._known = dict(read_table(self._list()))
        return self._known

    def _apply(self, plan: Plan[Object, Value]) -> Mapping[Object, Exception]:
        known = self._known if self._known is not None else self._read()
        try:
            return self._commit(plan, known)
        except _Failed as first:
            fresh = self._read()
            again = _remaining(plan, fresh)
            if again == plan and fresh == known:
                return first.errors
        try:
            return self._commit(again, fresh) if again else {}
        except _Failed as second:
            return second.errors

    def _commit(self, plan: Plan[Object, Value], known: dict[Object, Value]) -> Mapping[Object, Exception]:
        lines = list(_script(f"inet {self._table}", plan, known))
        self._known = None
        try:
            self._nft.run("\n".join(line.text for line in lines) + "\n")
        except NftRefused as refusal:
            raise _Failed(_blame(plan, lines, str(refusal))) from refusal
        known.update(plan.upsert)
        for key in plan.delete:
            known.pop(key, None)
        self._known = known
        return {}


class _Failed(Exception):
    def __init__(self, errors: Mapping[Object, Exception]) -> None:
        super().__init__()
        self.errors = errors


def _remaining(plan: Plan[Object, Value], actual: Mapping[Object, Value]) -> Plan[Object, Value]:
    """What of a plan is still to be done."""
    return Plan(
        {key: value for key, value in plan.upsert.items() if key not in actual or actual[key] != value},
        {key: value for key, value in plan.delete.items() if key in actual},
    )


def _script(table: str, plan: Plan[Object, Value], known: dict[Object, Value]) -> Iterator[_Line]:
    """The transaction that carries out `plan` on a table that holds `known`."""
    sets = {key: value for key, value in plan.upsert.items() if isinstance(key, SetName) and isinstance(value, Set)}
    chains = {k: v for k, v in plan.upsert.items() if isinstance(k, ChainName) and isinstance(v, ChainBody)}
    remade = [key for key in sets if key in known]
    rehooked = [key for key, value in chains.items() if key in known and _hook(known[key]) != value.hook]
    gone_sets = remade + [key for key in plan.delete if isinstance(key, SetName)]
    gone_chains = rehooked + [key for key in plan.delete if isinstance(key, ChainName)]
    dropped = {key.name for key in gone_sets}
    changed = [key for key in chains if key in known]

    yield _Line(f"add table {table}")
    for chain in chains:
        if chain not in known:
            yield _declare(table, chain, chains[chain])
    stale = [key for key in (*plan.delete, *plan.upsert) if isinstance(key, Element) and key in known]
    yield from _elements("delete", table, ((key, "") for key in stale if key.set not in dropped), known.get)
    for chain in dict.fromkeys(changed + gone_chains):
        yield _line(f"flush chain {table} {chain.name}", chain)
    for each in gone_sets:
        yield _line(f"delete set {table} {each.name}", each)
    for chain in gone_chains:
        yield _line(f"delete chain {table} {chain.name}", chain)
    for each, made in sets.items():
        yield _line(f"add {'map' if made.value else 'set'} {table} {each.name} {_typed(made)}", each)
    for chain in changed:
        yield _declare(table, chain, chains[chain])
    for chain, written in chains.items():
        for rule in written.rules:
            yield _line(f"add rule {table} {chain.name} {tagged(rule, written.digest)}", chain)
    lost = {each.name for each in remade}
    kept = (
        (key, value)
        for key, value in (known.items() if lost else ())
        if isinstance(key, Element) and key.set in lost and key not in plan.delete and key not in plan.upsert
    )

    def after(key: SetName) -> Value | None:
        return sets.get(key) or known.get(key)

    yield from _elements("add", table, kept, after)
    yield from _elements("add", table, plan.upsert.items(), after)


def _hook(value: Value) -> object:
    return value.hook if isinstance(value, ChainBody) else None


def _line(text: str, owner: Object) -> _Line:
    return _Line(text, ((0, owner),))


def _declare(table: str, chain: ChainName, written: ChainBody) -> _Line:
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
) -> Iterator[_Line]:
    """Commands of at most `_ELEMENTS_A_LINE` elements of one set each."""
    by_set: dict[str, list[tuple[Element, object]]] = {}
    for key, value in wanted:
        if isinstance(key, Element):
            by_set.setdefault(key.set, []).append((key, value))
    for name, items in by_set.items():
        spell = _speller(find(SetName(name)))
        for start in range(0, len(items), _ELEMENTS_A_LINE):
            texts, objects = [], []
            head = f"{verb} element {table} {name} {{ "
            column = len(head)
            for key, value in items[start : start + _ELEMENTS_A_LINE]:
                texts.append(f"{spell(key.key)} : {value}" if value else spell(key.key))
                objects.append((column, key))
                column += len(texts[-1]) + 2
            yield _Line(f"{head}{', '.join(texts)} }}", tuple(objects))


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


def _blame(plan: Plan[Object, Value], lines: Sequence[_Line], complaint: str) -> Mapping[Object, Exception]:
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

"""Our nftables table, and no other: read as a flat mapping, changed batch by batch.

A batch is carried out in at most three phases, of which packets see one (`linux.nft_phases`). A transaction that
`linux.nft_batch` can write goes to the kernel as it is, any other by way of libnftables (`linux.nft_script`). The
driver remembers the chains, sets and counters that are there, and which marks are mentioned; for elements it believes
the plan. What is complained of is told by object where the complaint points at one; everything else in the batch was
held back with it and says so. An object that somebody else removed or added meanwhile makes the first try fail; the
driver then reads again and tries once more with what is still different.

A read is believed when no transaction, of whomever and on whatever table, has come between its beginning and its end;
or when two in a row say the same, as others (kube-proxy) may write theirs all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Final

from core.names import NFT_TABLE
from core.nftables import Element, Set
from core.reconcile import Plan
from linux.libnftables import Nft, NftRefused
from linux.nfnetlink import Nfnetlink
from linux.nft_batch import blame as blame_requests
from linux.nft_batch import requests
from linux.nft_dump import elements
from linux.nft_monitor import Monitor
from linux.nft_objects import Object, SetName, Value
from linux.nft_phases import Marks, changes, phases
from linux.nft_script import blame, script
from linux.nft_shape import generation, read_shape
from linux.nft_wire import SUBSYSTEM, speaks

_READS: Final = 20


class NftDriver:
    """The table `inet NAME` of the namespace in which the driver is made (a `core.reconcile.Driver`)."""

    name = "nft"

    def __init__(self, table: str = NFT_TABLE) -> None:
        self._table = table
        self._nft = Nft()
        self._lock = asyncio.Lock()
        self._netlink = Nfnetlink()
        self._commits = 0
        self._shape: dict[Object, Value] | None = None  # the table's chains, sets and counters
        self._marks = Marks()
        self._monitor: Monitor | None = None

    def close(self) -> None:
        """Let go of the kernel; the table stays."""
        self._nft.close()
        self._netlink.close()

    async def read(self) -> Mapping[Object, Value]:
        """All of the table; empty when there is no such table. Raises OSError or NftRefused if it cannot tell."""
        async with self._lock:
            return await asyncio.to_thread(self._read)

    async def apply(self, plan: Plan[Object, Value]) -> Mapping[Object, Exception]:
        """Make one batch so. What packets see of it is made so as a whole or not at all."""
        async with self._lock:
            if self._monitor is not None:
                self._monitor.begin()
            self._commits = 0
            try:
                return await asyncio.to_thread(self._apply, plan)
            finally:
                if self._monitor is not None:
                    self._monitor.end(self._commits)

    async def remove(self) -> None:
        """Remove the table and everything in it, whoever put it there; no such table is a success. For clean-up."""
        async with self._lock:
            self._shape = None
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

    def _read(self) -> dict[Object, Value]:
        self._shape, last = None, None
        for _ in range(_READS):
            before = generation(self._netlink, self._table)
            if before is None:
                self._shape = {}
                self._marks.learn({})
                return {}
            shape, found = self._look()
            if generation(self._netlink, self._table) == before or found == last:
                self._shape = shape
                self._marks.learn(found)
                return found
            last = found
        raise NftRefused(f"table inet {self._table} changes too fast to read: tried {_READS} times; see who changes it")

    def _look(self) -> tuple[dict[Object, Value], dict[Object, Value]]:
        """The table without and with its elements. It may change meanwhile."""
        shape = read_shape(self._netlink, self._table)
        found = dict(shape)
        for key, made in shape.items():
            if isinstance(key, SetName) and isinstance(made, Set) and speaks(made):
                listed = elements(self._netlink, self._table, key.name, made)
                found.update((Element(key.name, spelt), value) for spelt, value in listed)
        return shape, found

    def _apply(self, plan: Plan[Object, Value]) -> Mapping[Object, Exception]:
        shape, fresh = self._shape, None
        if shape is None or any(isinstance(key, SetName) and key in shape for key in plan.upsert):
            fresh = self._read()  # a set is made anew with all its elements, which nobody keeps but the kernel
            plan, shape = _remaining(plan, fresh), self._shape
        try:
            return self._carry_out(plan, fresh)
        except _Failed as first:
            fresh = self._read()
            again = _remaining(plan, fresh)
            if again == plan and self._shape == shape:
                return first.errors
        try:
            return self._carry_out(again, fresh)
        except _Failed as second:
            return second.errors

    def _carry_out(self, plan: Plan[Object, Value], table: dict[Object, Value] | None) -> Mapping[Object, Exception]:
        """Raises `_Failed` with what became of every object of the plan."""
        try:
            for phase in list(phases(plan, self._shape or {}, self._marks)):
                self._commit(phase, table)
            return {}
        except _Failed as failure:
            held = NftRefused(f"held back: {next(iter(failure.errors.values()))}")
            raise _Failed({key: failure.errors.get(key, held) for key in (*plan.upsert, *plan.delete)}) from failure

    def _commit(self, plan: Plan[Object, Value], table: dict[Object, Value] | None) -> None:
        """One transaction. `table` is all that is there, where that is known; else what the plan says is believed."""
        if not plan:
            return
        shape, self._shape = self._shape or {}, None
        change = changes(plan, shape)
        sent = requests(self._table, plan, shape)
        if sent is None:
            self._run(plan, {**shape, **plan.delete, **plan.replace} if table is None else table)
        else:
            refused = self._netlink.transaction(SUBSYSTEM, [each.message for each in sent])
            if refused:
                raise _Failed(blame_requests(plan, sent, refused))
        self._commits += 1
        shape.update((key, value) for key, value in plan.upsert.items() if not isinstance(key, Element))
        for key in plan.delete:
            shape.pop(key, None)
        self._marks.follow(change)
        if table is not None:
            table.update(plan.upsert)
            for key in plan.delete:
                table.pop(key, None)
        self._shape = shape

    def _run(self, plan: Plan[Object, Value], known: Mapping[Object, Value]) -> None:
        lines = list(script(f"inet {self._table}", plan, known))
        try:
            self._nft.run("\n".join(line.text for line in lines) + "\n")
        except NftRefused as refusal:
            raise _Failed(blame(plan, lines, str(refusal))) from refusal


class _Failed(Exception):
    def __init__(self, errors: Mapping[Object, Exception]) -> None:
        super().__init__()
        self.errors = errors


def _remaining(plan: Plan[Object, Value], actual: Mapping[Object, Value]) -> Plan[Object, Value]:
    """What of a plan is still to be done."""
    upsert = {key: value for key, value in plan.upsert.items() if key not in actual or actual[key] != value}
    return Plan(
        upsert=upsert,
        delete={key: value for key, value in plan.delete.items() if key in actual},
        replace={key: actual[key] for key in upsert if key in actual},
    )

"""Our nftables table, and no other: read as a flat mapping, changed by one transaction a batch.

A batch is all or nothing. What nft complains of is told by object where its message points at one; everything else
in the batch was held back with it and says so. An object that somebody else removed or added meanwhile makes the
first try fail; the driver then reads again and tries once more with what is still different.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from core.names import NFT_TABLE
from core.reconcile import Plan
from linux.libnftables import Nft, NftRefused
from linux.nft_json import read_table
from linux.nft_monitor import Monitor
from linux.nft_objects import Object, Value
from linux.nft_script import blame, script


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
        lines = list(script(f"inet {self._table}", plan, known))
        self._known = None
        try:
            self._nft.run("\n".join(line.text for line in lines) + "\n")
        except NftRefused as refusal:
            raise _Failed(blame(plan, lines, str(refusal))) from refusal
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

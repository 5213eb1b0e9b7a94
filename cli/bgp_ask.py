"""Ask nodes' speakers from anywhere: a question each in the datastore, their answers awaited, everything taken back.

CalicoNodeStatus NAME {node, classes, prefix, period 0} ──> the node's bgp ──> its status ──> here ──> deleted
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cli import store
from cli.cluster import NO_NODES, NodeReport, overview
from core import manifest
from core.errors import NotFound
from core.names import Key
from core.resources import CalicoNodeStatus, Metadata, Node, SpeakerStatus
from core.resources.node_status import CalicoNodeStatusSpec, NodeStatus
from datastore import objects
from datastore.api import ABSENT, Changes, Delete, Entry, Event, Store

AT_ONCE: Final = 25
"""Nodes that are asked at the same time: every speaker hears of every answer."""

CLEAN_UP_S: Final = 5.0
"""How long taking the questions back may take."""


@dataclass(frozen=True, slots=True)
class Answers:
    """By node: what it said, or why it said nothing."""

    said: Mapping[str, NodeStatus]
    silent: Mapping[str, str]


async def ask(target: str, node: str | None, classes: Sequence[str], prefix: str, timeout_s: float) -> Answers:
    """Ask one node, or all of them. Raises `NotFound` when there is no such node, or none at all."""
    async with store.opened(target) as opened:
        state = await store.read(opened, {Node.KIND, SpeakerStatus.KIND})
        page = overview(state.objects.values(), state.revision, datetime.now(UTC))
        reports = [each for each in page.nodes if node in (None, each.node)]
        if not reports:
            raise NotFound(f"there is no node {node}; `muslin get nodes` lists them" if node else NO_NODES)
        silent = {each.node: why for each in reports if (why := _silence(each))}
        asked = [each.node for each in reports if each.node not in silent]
        said: dict[str, NodeStatus] = {}
        for start in range(0, len(asked), AT_ONCE):
            said |= await _ask(opened, asked[start : start + AT_ONCE], classes, prefix, timeout_s)
        for name in asked:
            if name not in said:
                silent[name] = f"its bgp has not answered within {timeout_s:g} s; `muslin bgp status` may say why"
        return Answers(said, silent)


def _silence(report: NodeReport) -> str:
    """Why it would be asked in vain."""
    if report.speaker is None:
        return "its bgp has never reported; does `muslin node` run there?"
    return report.speaker.seen.wrong("bgp") if report.speaker.seen.silent else ""


async def _ask(
    opened: Store, nodes: Iterable[str], classes: Sequence[str], prefix: str, timeout_s: float
) -> Mapping[str, NodeStatus]:
    token = secrets.token_hex(6)
    questions = {
        f"ask-{token}-{number}": CalicoNodeStatusSpec(
            node=node, classes=list(classes), prefix=prefix, update_period_seconds=0
        )
        for number, node in enumerate(nodes)
    }
    waiting = {Key(CalicoNodeStatus.KIND, "", name): spec.node for name, spec in questions.items()}
    found: dict[str, NodeStatus] = {}
    keys = list(waiting)
    try:
        revision = await opened.txn([objects.put(_question(*each), ABSENT) for each in questions.items()])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await _collect(opened, revision, waiting, found)
    finally:
        async with asyncio.timeout(CLEAN_UP_S):
            await opened.txn([Delete(key) for key in keys])
    return found


def _question(name: str, spec: CalicoNodeStatusSpec) -> CalicoNodeStatus:
    kind = CalicoNodeStatus.KIND
    return CalicoNodeStatus(api_version=kind.api_version, kind=kind.name, metadata=Metadata(name=name), spec=spec)


async def _collect(opened: Store, revision: int, waiting: dict[Key, str], found: dict[str, NodeStatus]) -> None:
    """Move nodes from `waiting` to `found` as they answer, until all have. After a watch that ends comes a listing."""
    while waiting:
        async with aclosing(opened.watch(revision, {CalicoNodeStatus.KIND})) as items:
            async for item in items:
                if not isinstance(item, Changes):
                    continue
                for event in item.events:
                    _take(event, waiting, found)
                if not waiting:
                    return
        listing = await opened.list({CalicoNodeStatus.KIND})
        revision = listing.revision
        for entry in listing.entries:
            _take(entry, waiting, found)


def _take(told: Event | Entry, waiting: dict[Key, str], found: dict[str, NodeStatus]) -> None:
    if told.key not in waiting or told.value is None:
        return
    said = manifest.decode(told.key, told.value)
    assert isinstance(said, CalicoNodeStatus)
    if said.status is not None and said.status.last_updated:
        found[waiting.pop(told.key)] = said.status

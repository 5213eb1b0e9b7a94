"""This node's workload endpoints, followed while a BGPPeer asks for sessions with them, and not otherwise.

    follow(all else) ──> given ─────────┐  some BGPPeer of this node has a localWorkloadSelector:
    follow(KINDS of pods) ──> pods ─────┴──> given, with the tables of this node's pods  ──> out

Few clusters ask. The speakers of those that do not would watch every pod of the cluster for nothing: at 150,000 pods
seconds of a processor at each start, 100 MB from the datastore to each node, and every pod's coming and going. What
is followed is decoded and, if it is another node's, dropped at once (`bgp.thrift`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from bgp.thrift import thrifty
from core import manifest
from core.latest import Latest
from core.names import Kind
from core.peering import applies
from core.resources import BGPPeer, Namespace, Node, Profile, ServiceAccount, WorkloadEndpoint
from core.resources.bgp import BGPPeerSpec
from core.snapshot import Snapshot, Table
from datastore.api import Store
from datastore.follow import follow

KINDS: Final = (Namespace, Profile, ServiceAccount, WorkloadEndpoint)
"""Pods, and what lends them labels."""


async def with_pods(store: Store, node: str, given: Latest[Snapshot], out: Latest[Snapshot]) -> None:
    """Pass snapshots on for ever, with the tables of `node`'s pods when they are asked for and known."""
    async with asyncio.TaskGroup() as group:
        pods = _Pods(store, node, out, group)
        async for snapshot in given:
            pods.take(snapshot)


class _Pods:
    def __init__(self, store: Store, node: str, out: Latest[Snapshot], group: asyncio.TaskGroup) -> None:
        self._store, self._node, self._out, self._group = store, node, out, group
        self._snapshot: Snapshot | None = None
        self._tables: Mapping[Kind, Table] = {}
        self._following: asyncio.Task[None] | None = None

    def take(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        asked = asks(snapshot, self._node)
        if asked and self._following is None:
            self._following = self._group.create_task(self._follow(), name="follow-pods")
        elif not asked and self._following is not None:
            self._following.cancel()
            self._following, self._tables = None, {}
        self._pass_on()

    async def _follow(self) -> None:
        pods: Latest[Snapshot] = Latest()
        decode = thrifty(manifest.decode, self._node)
        async with asyncio.TaskGroup() as group:
            group.create_task(follow(self._store, KINDS, pods, None, decode=decode))
            async for found in pods:
                if found.tables != self._tables:  # other nodes' pods come and go all the time
                    self._tables = found.tables
                    self._pass_on()

    def _pass_on(self) -> None:
        assert self._snapshot is not None  # it was taken before anything was followed
        tables = MappingProxyType({**self._snapshot.tables, **self._tables})
        self._out.put(replace(self._snapshot, tables=tables))


def asks(snapshot: Snapshot, name: str) -> bool:
    """Whether some BGPPeer asks for sessions with pods of node `name`."""
    node = snapshot.get(Node, name)
    specs = (peer.spec for peer in snapshot.of(BGPPeer).values() if peer.spec.local_workload_selector)
    return node is not None and any(_applies(spec, node) for spec in specs)


def _applies(spec: BGPPeerSpec, node: Node) -> bool:
    try:
        return applies(spec, node)
    except ValueError:  # a selector, which `bgp.peering.peers` blocks
        return False

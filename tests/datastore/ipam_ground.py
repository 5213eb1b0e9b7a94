"""A cluster for ledgers to work on: pools and nodes written, and what the store says of addresses afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Self

from core.addr import Address, contains
from core.manifest import decode
from core.resources import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfiguration,
    IPAMHandle,
    IPPool,
    Metadata,
    Node,
    R,
    Resource,
)
from core.resources.ipam import AffinityState, IPAMConfigurationSpec
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec
from datastore import objects
from datastore.api import Listing, Store
from datastore.ipam.model import Owner, Request

DEADLINE_S = 60.0


def pool(name: str, cidr: str, **fields: object) -> IPPool:
    """A pool."""
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **fields))  # type: ignore[arg-type]


def node(number: int) -> Node:
    """A node that has no tunnel address yet: `node-NUMBER`."""
    bgp = NodeBGPSpec(ipv4_address=f"192.0.2.{number + 1}/24")
    return Node(metadata=Metadata(name=f"node-{number}"), spec=NodeSpec(bgp=bgp))


def settings(**fields: object) -> IPAMConfiguration:
    """How addresses are given."""
    spec = IPAMConfigurationSpec(**fields)  # type: ignore[arg-type]
    return IPAMConfiguration(metadata=Metadata(name="default"), spec=spec)


async def put(store: Store, *resources: Resource) -> int:
    """Write them together."""
    return await store.txn([objects.put(each) for each in resources])


def pod(name: str, on: str, **fields: object) -> Request:
    """A pod's request; its handle is its name."""
    return Request(handle=name, owner=Owner(node=on, namespace="shop", pod=name), **fields)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Said:
    """What the store says of addresses."""

    by_handle: Mapping[str, tuple[Address, ...]]
    blocks: tuple[IPAMBlock, ...]
    claims: tuple[BlockAffinity, ...]

    @classmethod
    async def by(cls, store: Store) -> Self:
        """Read it; what blocks and handles say must agree, no address is twice, no two blocks overlap."""
        listing = await store.list({IPAMBlock.KIND, IPAMHandle.KIND, BlockAffinity.KIND})
        blocks = tuple(_of(listing, IPAMBlock))
        by_blocks: dict[str, set[Address]] = {}
        for block in blocks:
            for text, handle in block.spec.allocations.items():
                by_blocks.setdefault(handle, set()).add(ip_address(text))
        by_handle = {
            each.spec.handle_id: tuple(sorted(map(ip_address, each.spec.addresses), key=int))
            for each in _of(listing, IPAMHandle)
        }
        assert {handle: set(held) for handle, held in by_handle.items()} == by_blocks
        networks = sorted((block.spec.network for block in blocks), key=lambda each: int(each.network_address))
        assert not any(contains(one, other) for one, other in pairwise(networks))
        return cls(by_handle, blocks, tuple(_of(listing, BlockAffinity)))

    def owners(self) -> dict[str, list[str]]:
        """The blocks of each node."""
        found: dict[str, list[str]] = {}
        for block in self.blocks:
            found.setdefault(block.spec.node, []).append(block.spec.cidr)
        return found

    def settled(self) -> bool:
        """Whether every claim is confirmed and its node's block there."""
        mine = {(block.spec.node, block.spec.cidr) for block in self.blocks}
        return all(
            claim.spec.state is AffinityState.CONFIRMED and (claim.spec.node, claim.spec.cidr) in mine
            for claim in self.claims
        )


def _of(listing: Listing, cls: type[R]) -> list[R]:
    found = (decode(entry.key, entry.value) for entry in listing.entries if entry.key.kind == cls.KIND)
    return [each for each in found if isinstance(each, cls)]


class Proxy:
    """A way to a datastore's socket that can be cut: nothing gets through, and nobody hears why."""

    def __init__(self, path: Path, to: str) -> None:
        self.address = f"unix:{path}"
        self._path, self._to = path, to.removeprefix("unix:")
        self._open = asyncio.Event()
        self._open.set()
        self._streams: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Serve while the context is open."""
        server = await asyncio.start_unix_server(self._serve, self._path)
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await server.wait_closed()

    def cut(self) -> None:
        """Cut every connection, and let no new one through."""
        self._open.clear()
        for writer in self._streams:
            writer.close()

    def mend(self) -> None:
        """Let connections through again."""
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open.is_set():
            writer.close()
            return
        there, back = await asyncio.open_unix_connection(self._to)
        self._streams |= {writer, back}
        try:
            await asyncio.gather(_pass(reader, back), _pass(there, writer))
        finally:
            self._streams -= {writer, back}
            for each in (writer, back):
                each.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()

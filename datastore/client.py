"""The store as everyone but its server sees it: the same contract, over gRPC.

A lost connection is `Unavailable` from whatever call was on it. So is a silent one: the connection is pinged, and a
peer that does not answer (a black hole, a stopped process) is given up, watches included. Nothing is retried here:
who calls knows whether that is safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import aclosing, contextmanager

import grpc

from core.errors import Invalid, MuslinError, Problem, Unavailable
from core.names import Key, Kind
from datastore import codec, link
from datastore.api import Compacted, Entry, Guard, Listing, Operation, WatchItem, check
from proto.v1 import datastore_pb2 as pb
from proto.v1.datastore_pb2_grpc import DatastoreStub


class GrpcStore:
    """A `Store` served at `target`: `unix:/run/muslin/datastore.sock` or `HOST:PORT`. Made inside an event loop.

    `timeout_s` bounds each call but `watch`. The connection is pinged after `keepalive_s` of silence and given up when
    as much again passes without an answer. Connects on first use, and again by itself.
    """

    def __init__(self, target: str, *, timeout_s: float = 10.0, keepalive_s: float = 10.0) -> None:
        self._target, self._timeout = target, timeout_s
        self._closing = asyncio.Event()
        options = [
            *link.noticing(keepalive_s),
            *link.returning(),
            *link.bounded(codec.MESSAGE_BOUND, codec.METADATA_BOUND),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        self._channel = grpc.aio.insecure_channel(target, options=options)
        self._stub = DatastoreStub(self._channel)

    async def get(self, key: Key) -> Entry | None:
        """The entry of `key`; None when there is none."""
        with self._errors():
            response = await self._stub.Get(pb.GetRequest(path=key.path), timeout=self._timeout)
            return codec.entry_from(response.entry) if response.HasField("entry") else None

    async def list(self, kinds: AbstractSet[Kind]) -> Listing:
        """Every entry of `kinds`, ordered by path."""
        revision, entries = 0, list[Entry]()
        async with aclosing(self.pages(kinds)) as pages:
            async for page in pages:
                revision = page.revision
                entries += page.entries
        return Listing(revision, tuple(entries))

    async def pages(self, kinds: AbstractSet[Kind]) -> AsyncGenerator[Listing, None]:
        """Every entry of `kinds`, ordered by path, as they arrive; the time limit is for each part."""
        with self._errors():
            call = self._stub.List(pb.ListRequest(prefixes=codec.prefixes_to(kinds)))
            responses = aiter(call)
            try:
                while True:
                    async with asyncio.timeout(self._timeout):
                        response = await anext(responses, None)
                    if response is None:
                        return
                    yield Listing(response.revision, tuple(map(codec.entry_from, response.entries)))
            except TimeoutError:
                raise Unavailable(
                    f"the datastore at {self._target} is away: it did not go on with a list for {self._timeout:g} s"
                ) from None
            finally:
                call.cancel()

    async def txn(self, operations: Sequence[Operation], guards: Sequence[Guard] = ()) -> int:
        """Apply all operations or none; the new revision."""
        check(operations, guards)
        with self._errors():
            response = await self._stub.Txn(codec.txn_to(operations, guards), timeout=self._timeout)
            return response.revision

    async def watch(self, after: int, kinds: AbstractSet[Kind]) -> AsyncGenerator[WatchItem, None]:
        """Changes of `kinds` after revision `after`."""
        with self._errors():
            call = self._stub.Watch(pb.WatchRequest(after=after, prefixes=codec.prefixes_to(kinds)))
            try:
                async for message in call:
                    item = codec.item_from(message)
                    yield item
                    if isinstance(item, Compacted):
                        return
            finally:
                call.cancel()
            raise Unavailable(f"the datastore at {self._target} ended the watch; watch again")

    async def compact(self, before: int) -> None:
        """Forget history older than revision `before`; present values stay."""
        with self._errors():
            await self._stub.Compact(pb.CompactRequest(before=before), timeout=self._timeout)

    async def close(self) -> None:
        """Close the connection; calls in progress end with `Unavailable`."""
        self._closing.set()
        await self._channel.close(None)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the wire says into what muslin raises."""
        if self._closing.is_set():
            raise Unavailable(f"the connection to the datastore at {self._target} is closed")
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._meaning(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if (
                self._closing.is_set() and task is not None and not task.cancelling()
            ):  # the call was cancelled, not its caller
                raise Unavailable(f"the connection to the datastore at {self._target} is closed") from None
            raise

    def _meaning(self, error: grpc.aio.AioRpcError) -> MuslinError:
        details = dict[str, bytes](error.trailing_metadata() or ())  # type: ignore[arg-type]
        match error.code():
            case grpc.StatusCode.ABORTED if codec.CONFLICT in details:
                return codec.conflict_from(details[codec.CONFLICT])
            case grpc.StatusCode.INVALID_ARGUMENT if codec.PROBLEMS in details:
                return codec.problems_from(details[codec.PROBLEMS])
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.RESOURCE_EXHAUSTED:
                return Invalid([Problem(where=self._target, why=error.details() or "refused")])
            case code:
                said = (error.details() or "no reason given").rpartition("last error: ")[2]
                return Unavailable(f"the datastore at {self._target} is away: {code.name}: {said}")

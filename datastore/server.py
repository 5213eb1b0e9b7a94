"""The gRPC front of a store. Stateless: run as many as the backend allows.

    client ──> Get, List, Compact ──> store
          ──> Txn ──> admit(store, operations) ──> guards ──> store.txn(operations, guards)
          │             └── Invalid: refused          └── a guard of admission broke: admit again, a few times
          ──> Watch ──> fanout ──> store.watch

Admission checks what is written against what is there (no two pools overlap). What it read may change before the
write: so it returns guards, which the transaction carries. The server serves a UNIX socket that only its own user may
open, and TCP on loopback; TCP elsewhere would be open to all, so it is refused unless asked for by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import grpc

from core.errors import Conflict, Invalid, MuslinError, Problem, Unavailable, Unsupported
from datastore import codec, link
from datastore.api import BATCH_BYTES, BATCH_EVENTS, Guard, Operation, Store, WatchItem, check
from datastore.fanout import WINDOW, Fanout
from proto.v1 import datastore_pb2 as pb

ADMISSIONS: Final = 5
"""How often one transaction is admitted when what admission read keeps changing."""

GRACE_S: Final = 1.0
"""How long calls in progress may take to end once the server stops."""

SENTENCE_BOUND: Final = 2000
"""Longest status text, in characters; the details travel beside it."""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class Admission(Protocol):
    """Says whether operations may be written to a store."""

    async def __call__(self, store: Store, operations: Sequence[Operation]) -> Sequence[Guard]:
        """Guards under which the operations are sound, or `Invalid`."""


class Servicer:
    """The calls of the service, over one store."""

    def __init__(self, store: Store, admit: Admission, fanout: Fanout) -> None:
        self._store, self._admit, self._fanout = store, admit, fanout

    async def get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        """The entry of one key."""
        async with _statuses(context):
            entry = await self._store.get(codec.key_from(request.path))
        return pb.GetResponse(entry=codec.entry_to(entry) if entry else None)

    async def list(self, request: pb.ListRequest, context: Context) -> AsyncGenerator[pb.ListResponse, None]:
        """Every entry of some kinds, in batches."""
        async with _statuses(context):
            listing = await self._store.list(codec.kinds_from(request.prefixes))
        response = pb.ListResponse(revision=listing.revision)
        size = 0
        for entry in listing.entries:
            if len(response.entries) >= BATCH_EVENTS or size >= BATCH_BYTES:
                yield response
                response, size = pb.ListResponse(revision=listing.revision), 0
            response.entries.append(codec.entry_to(entry))
            size += len(entry.value)
        yield response

    async def txn(self, request: pb.TxnRequest, context: Context) -> pb.TxnResponse:
        """Several writes, once they are admitted."""
        async with _statuses(context):
            operations, guards = codec.txn_from(request)
            check(operations, guards)
            return pb.TxnResponse(revision=await self._write(operations, guards))

    async def watch(self, request: pb.WatchRequest, context: Context) -> AsyncGenerator[bytes, None]:
        """What changes, as bytes that many watchers share."""
        async with _statuses(context):
            if request.after < 0:
                raise Invalid([Problem(why=f"cannot watch after revision {request.after}; use 0 or more")])
            async with aclosing(self._fanout.watch(request.after, codec.kinds_from(request.prefixes))) as messages:
                async for message in messages:
                    yield message

    async def compact(self, request: pb.CompactRequest, context: Context) -> pb.CompactResponse:
        """Forget old history."""
        async with _statuses(context):
            await self._store.compact(request.before)
        return pb.CompactResponse()

    async def _write(self, operations: Sequence[Operation], guards: Sequence[Guard]) -> int:
        asked = {*map(str, guards), *(str(operation.key) for operation in operations)}
        attempt = 1
        while True:
            added = await self._admit(self._store, operations)
            try:
                return await self._store.txn(operations, [*guards, *added])
            except Conflict as conflict:
                ours = conflict.what not in asked and conflict.what in {str(guard) for guard in added}
                if not ours or attempt == ADMISSIONS:
                    raise
            attempt += 1


async def serve_store(
    store: Store,
    listen: Sequence[str],
    admit: Admission,
    *,
    insecure: bool = False,
    on_ready: Callable[[Sequence[str]], None] = lambda _: None,
    window: int = WINDOW,
    keepalive_s: float = 10.0,
) -> None:
    """Serve `store` on every address of `listen` (`unix:PATH`, `HOST:PORT`) until cancelled.

    `on_ready` hears the addresses as bound (port 0 becomes a real one). `window` bounds what is kept for each set of
    kinds that is watched, in bytes. Raises `Invalid` for an address that may not be served, `Unsupported` for one that
    cannot be bound.
    """
    server = grpc.aio.server(options=_options(keepalive_s))
    sockets: dict[str, int] = {}
    try:
        try:
            bound = [await _bind(server, address, insecure, sockets) for address in listen]
        except MuslinError:
            await server.stop(None)  # lets go of what was bound before the one that failed
            raise
        async with asyncio.TaskGroup() as tasks:
            fanout = Fanout(store, _encode, tasks, window)
            server.add_generic_rpc_handlers((_handlers(Servicer(store, admit, fanout)),))
            try:
                await server.start()
                on_ready(bound)
                await server.wait_for_termination()
            finally:
                fanout.close()
                await server.stop(GRACE_S)
    finally:
        for address, inode in sockets.items():
            _remove(Path(address.removeprefix("unix:")), inode)


def _encode(item: WatchItem) -> bytes:
    return codec.item_to(item).SerializeToString()


def _options(keepalive_s: float) -> link.Options:
    return [
        *link.noticing(keepalive_s),
        *link.bounded(codec.MESSAGE_BOUND, codec.METADATA_BOUND),
        ("grpc.so_reuseport", 0),  # two servers on one port would each see half the calls
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ]


def _handlers(servicer: Servicer) -> grpc.GenericRpcHandler[Any, Any]:
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    return grpc.method_handlers_generic_handler(
        codec.SERVICE,
        {
            "Get": unary(servicer.get, pb.GetRequest.FromString, pb.GetResponse.SerializeToString),
            "List": stream(servicer.list, pb.ListRequest.FromString, pb.ListResponse.SerializeToString),
            "Txn": unary(servicer.txn, pb.TxnRequest.FromString, pb.TxnResponse.SerializeToString),
            "Watch": stream(servicer.watch, pb.WatchRequest.FromString, bytes),
            "Compact": unary(servicer.compact, pb.CompactRequest.FromString, pb.CompactResponse.SerializeToString),
        },
    )


@asynccontextmanager
async def _statuses(context: Context) -> AsyncIterator[None]:
    """Turn what muslin raises into what the wire says; see datastore.proto."""
    try:
        yield
    except Conflict as error:
        await _abort(context, grpc.StatusCode.ABORTED, error, ((codec.CONFLICT, codec.conflict_to(error)),))
    except Invalid as error:
        await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, error, ((codec.PROBLEMS, codec.problems_to(error)),))
    except Unavailable as error:
        await _abort(context, grpc.StatusCode.UNAVAILABLE, error)
    except MuslinError as error:
        await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, error)


async def _abort(
    context: Context, code: grpc.StatusCode, error: MuslinError, details: tuple[tuple[str, bytes], ...] = ()
) -> None:
    await context.abort(code, str(error)[:SENTENCE_BOUND], details)


async def _bind(server: grpc.aio.Server, address: str, insecure: bool, sockets: dict[str, int]) -> str:
    """Bind one address; a UNIX socket's inode is noted in `sockets`, by its address."""
    if address.startswith("unix:"):
        sockets[address] = await _bind_unix(server, Path(address.removeprefix("unix:")))
        return address
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise _refused(address, "is neither unix:PATH nor HOST:PORT")
    if not insecure and not _is_loopback(host):
        raise _refused(address, "would be open to everyone who can reach it; listen on loopback or a UNIX socket")
    try:
        return f"{host}:{server.add_insecure_port(address)}"
    except RuntimeError as error:
        raise Unsupported(f"cannot listen on {address}: the port is taken or the address is not ours") from error


async def _bind_unix(server: grpc.aio.Server, path: Path) -> int:
    """Bind a UNIX socket that its owner alone may open; its inode.

    gRPC removes the path it bound some time after the server has stopped, when another server may have bound it
    already. So it binds a name of this process's own, which is then moved to where clients look.
    """
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_unix_connection(path)
        writer.close()
        raise _refused(f"unix:{path}", "is served by another process; stop that one first")
    own = path.with_name(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{own}")
        finally:
            os.umask(before)
        inode = own.stat().st_ino
        own.rename(path)
    except (OSError, RuntimeError) as error:
        raise Unsupported(
            f"cannot listen on unix:{path}: {error}; is the path short and its folder writable?"
        ) from error
    return inode


def _remove(path: Path, inode: int) -> None:
    """Remove our socket; one that a later server has put in its place stays."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _refused(address: str, why: str) -> Invalid:
    return Invalid([Problem(what=address, why=why)])

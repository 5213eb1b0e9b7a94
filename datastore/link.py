"""What every gRPC connection of the store is set to: it notices a peer that is gone, and comes back soon."""

from __future__ import annotations

from typing import TypeAlias

Options: TypeAlias = list[tuple[str, int]]


def noticing(keepalive_s: float) -> Options:
    """Ping after `keepalive_s` of silence; give the connection up when as much again passes without an answer.

    gRPC 1.85 waits for the answer as long as `ping_timeout_ms` says (a minute, when unset), whatever
    `keepalive_timeout_ms` says; older ones know only the latter.
    """
    bound = int(keepalive_s * 1000)
    return [
        ("grpc.keepalive_time_ms", bound),
        ("grpc.keepalive_timeout_ms", bound),
        ("grpc.http2.ping_timeout_ms", bound),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def returning() -> Options:
    """For clients: try again within 2 s; no proxy, no shared connection, no hidden retries."""
    return [
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),  # the datastore is never behind one, whatever the environment says
        ("grpc.use_local_subchannel_pool", 1),
    ]


def bounded(message: int, metadata: int | None = None) -> Options:
    """Longest message (-1: any) and metadata, in bytes."""
    options = [("grpc.max_receive_message_length", message), ("grpc.max_send_message_length", message)]
    if metadata is not None:
        options += [("grpc.max_metadata_size", metadata), ("grpc.absolute_max_metadata_size", metadata)]
    return options

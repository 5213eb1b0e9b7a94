"""Sessions under TCP-MD5 and TTL security, where our ExaBGP is called and where it calls."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from bgp_raw_peer import RawPeer, Speaking, opening, speaker, speaking

from bgp.model import Session
from linux.netns import scratch_namespace

pytestmark = pytest.mark.kernel

OURS = "127.0.0.1"
OPEN_ONE, RED, BLUE, NEAR, NEAR_TOO = (f"127.0.0.{number}" for number in range(2, 7))

SESSION = Session(
    name="p",
    peer=ip_address(OPEN_ONE),
    port=179,
    local=ip_address(OURS),
    local_as=64512,
    remote_as=65001,
    hold_s=90,
    restart_s=120,
    passive=True,
)


def of(peer: str, **more: object) -> Session:
    return replace(SESSION, peer=ip_address(peer), **more)  # type: ignore[arg-type]


SESSIONS = (
    of(OPEN_ONE),
    of(RED, password="rot"),
    of(BLUE, password="bläu; {\"'} #"),
    of(NEAR, ttl_hops=1),
    of(NEAR_TOO, ttl_hops=2, password="rot"),
)


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Speaking]:
    with scratch_namespace():
        made = speaker(*SESSIONS)
        async with speaking(tmp_path / "run", replace(made, listen=(ip_address("0.0.0.0"),))) as running:
            yield running


def keyed(peer: str, key: str) -> Callable[[socket.socket], None]:
    """TCP_MD5SIG towards `peer` (include/uapi/linux/tcp.h)."""
    address = struct.pack("=HH4s120x", socket.AF_INET, 0, ip_address(peer).packed)
    value = address + struct.pack("=2xH4x80s", len(key.encode()), key.encode())
    return lambda tcp: tcp.setsockopt(socket.IPPROTO_TCP, 14, value)


def with_ttl(ttl: int) -> Callable[[socket.socket], None]:
    return lambda tcp: tcp.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)


def both(*preparations: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    return lambda tcp: [each(tcp) for each in preparations] and None


async def comes_up(running: Speaking, local: str, prepare: Callable[[socket.socket], None]) -> bool:
    """Whether a peer at `local` gets a session with a socket so prepared, soon."""
    peer = RawPeer(local, OURS)
    try:
        async with asyncio.timeout(0.7):
            await peer.connect(opening(65001, f"10.0.0.{local.rpartition('.')[2]}"), prepare=prepare)
            await running.wait("it says so, too", lambda: ip_address(local) in running.up)
        return True
    except (TimeoutError, ConnectionError):
        assert ip_address(local) not in running.up
        return False
    finally:
        await peer.close()


async def test_called_by_peers_with_passwords_and_from_afar(guarded: Speaking) -> None:
    red, blue = keyed(OURS, "rot"), keyed(OURS, "bläu; {\"'} #")
    cases = [
        (OPEN_ONE, with_ttl(1), True),
        (RED, red, True),
        (BLUE, blue, True),
        (NEAR, with_ttl(255), True),
        (NEAR_TOO, both(red, with_ttl(254)), True),
        (OPEN_ONE, red, False),
        (RED, blue, False),
        (RED, with_ttl(255), False),
        (BLUE, keyed(OURS, "rotten"), False),
        (NEAR, with_ttl(254), False),
        (NEAR_TOO, both(red, with_ttl(253)), False),
        (NEAR_TOO, with_ttl(255), False),
    ]
    good = [comes_up(guarded, local, prepare) for local, prepare, wanted in cases if wanted]
    assert await asyncio.gather(*good) == [True] * len(good)
    await guarded.wait("all are gone again", lambda: not guarded.up)
    for local, prepare, wanted in cases:
        if not wanted:
            assert not await comes_up(guarded, local, prepare), (local, prepare)


async def test_a_reload_guards_who_is_new_and_frees_who_is_not(guarded: Speaking) -> None:
    changed = speaker(of(OPEN_ONE, ttl_hops=1), of(RED), of(NEAR))
    guarded.exabgp.configure(replace(changed, listen=(ip_address("0.0.0.0"),)))
    async with asyncio.timeout(15):
        for local, ttl in ((RED, 1), (NEAR, 1), (OPEN_ONE, 255)):
            while not await comes_up(guarded, local, with_ttl(ttl)):
                pass  # a changed session refuses the first who calls
    assert not await comes_up(guarded, OPEN_ONE, with_ttl(254))
    assert guarded.lives == ["start"]


async def test_called_without_an_address_to_be_called_at(tmp_path: Path) -> None:
    waiting = replace(speaker(of(OPEN_ONE, local=None)), listen=(ip_address("0.0.0.0"),), addresses=(ip_address(OURS),))
    with scratch_namespace():
        async with speaking(tmp_path / "run", waiting) as running:
            assert await comes_up(running, OPEN_ONE, with_ttl(64))


async def test_calling_with_passwords_and_from_afar(tmp_path: Path) -> None:
    called: dict[str, int] = {}
    done = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Count who sends an OPEN: the handshake was accepted on both sides."""
        local = writer.get_extra_info("sockname")[0]
        try:
            await reader.readexactly(19)
            called[local] = called.get(local, 0) + 1
            done.set()
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    with scratch_namespace():
        servers = []
        for local, prepare in (
            (RED, keyed(OURS, "rot")),
            (BLUE, keyed(OURS, "falsch")),
            (NEAR, with_ttl(255)),
            (NEAR_TOO, both(keyed(OURS, "rot"), with_ttl(253))),
        ):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            prepare(listener)
            listener.bind((local, 179))
            servers.append(await asyncio.start_server(answer, sock=listener))
        active = [replace(each, passive=False) for each in SESSIONS]
        async with speaking(tmp_path / "run", replace(speaker(*active), listen=(ip_address(OURS),))):
            try:
                async with asyncio.timeout(15):
                    while {RED, NEAR} - called.keys():
                        done.clear()
                        await done.wait()
            finally:
                for server in servers:
                    server.close()
        assert called.keys() == {RED, NEAR}

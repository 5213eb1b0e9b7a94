"""Namespaces by name and by path: listed, reached by commands and sockets, and who lives in them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from core.errors import MuslinError
from linux import netns, sysctl

pytestmark = pytest.mark.kernel

NAMES = tuple(f"muslin-netns-{os.getpid()}-{letter}" for letter in "ab")


@pytest.fixture
def made() -> Iterator[tuple[str, ...]]:
    """Two namespaces."""
    try:
        for name in NAMES:
            netns.create(name)
        yield NAMES
    finally:
        for name in NAMES:
            netns.delete(name)


def inode(namespace: str) -> int:
    return os.stat(netns.path(namespace)).st_ino


def test_names_are_found_by_their_beginning(made: tuple[str, ...]) -> None:
    assert netns.names(f"muslin-netns-{os.getpid()}") == made
    assert set(made) <= set(netns.names())
    netns.delete(made[0])
    assert netns.names(made[0]) == ()


def test_a_command_runs_inside_whether_the_namespace_is_named_or_a_path(made: tuple[str, ...]) -> None:
    for namespace in (made[0], netns.path(made[0])):
        argv = netns.command(namespace, "readlink", "/proc/self/ns/net")
        shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert shown.strip() == f"net:[{inode(made[0])}]"
    argv = netns.command(made[0], "ls", "/sys/class/net")
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split() == ["lo"]


def test_sockets_of_two_namespaces_do_not_meet(made: tuple[str, ...]) -> None:
    opened = [netns.open_socket(name, socket.AF_INET, socket.SOCK_DGRAM) for name in made]
    try:
        for each in opened:
            each.bind(("127.0.0.1", 5353))
        opened[0].sendto(b"x", ("127.0.0.1", 5353))
        assert opened[0].recv(9) == b"x"
        with pytest.raises(BlockingIOError):
            opened[1].recv(9)
    finally:
        for each in opened:
            each.close()
    with pytest.raises(FileNotFoundError):
        netns.open_socket("muslin-netns-none", socket.AF_INET, socket.SOCK_DGRAM)


def test_who_lives_in_a_namespace_is_found_and_nobody_else(made: tuple[str, ...]) -> None:
    argv = netns.command(made[0], "sh", "-c", "echo up; exec sleep 60")
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        try:
            assert netns.inhabitants(made) == (child.pid,)
            assert netns.inhabitants([made[1], "muslin-netns-none"]) == ()
        finally:
            child.kill()


def test_a_sysctl_is_written_in_the_namespace_alone(made: tuple[str, ...]) -> None:
    key = "net/ipv6/conf/lo/hop_limit"
    with netns.inside(made[0]):
        sysctl.write(key, "77")
        with pytest.raises(MuslinError, match=r"conf/none/hop_limit: there is none"):
            sysctl.write("net/ipv6/conf/none/hop_limit", "77")
    shown = [
        subprocess.run(
            netns.command(name, "cat", f"/proc/sys/{key}"), capture_output=True, text=True, check=True
        ).stdout
        for name in made
    ]
    assert shown[0] == "77\n" != shown[1]

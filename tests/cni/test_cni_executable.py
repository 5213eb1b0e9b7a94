"""The executable that runtimes run: bytes there, bytes back, and a clear word when there is nobody to ask."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from asking import Executable, door, install, until

from cni import conf, spec
from cni import executable as source
from cni.model import Answer, Question
from cni.server import MOST_CONNECTIONS

NETNS = "/proc/self/ns/net"


@pytest.fixture
def executable(tmp_path: Path) -> Executable:
    return install(tmp_path)


@asynccontextmanager
async def listening(path: Path, backlog: int = 8) -> AsyncIterator[socket.socket]:
    """A socket of ours in the agent's place."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.bind(str(path))
        opened.listen(backlog)
        opened.setblocking(False)
        yield opened


async def test_what_the_runtime_says_arrives_and_what_the_agent_says_is_printed(executable: Executable) -> None:
    asked: list[Question] = []
    namespaces: list[tuple[int, int]] = []

    async def answer(question: Question) -> Answer:
        asked.append(question)
        assert question.netns is not None
        found = os.fstat(question.netns)
        namespaces.append((found.st_dev, found.st_ino))
        assert not os.get_inheritable(question.netns)
        return Answer(status=3, stdout=b'{"fine": "\xc3\xa9"}\n')

    async with door(executable.socket, answer):
        heard = await executable.run(
            "ADD", b'{"name": "net"}', CNI_NETNS=NETNS, CNI_ARGS="A=1;B=x=y", CNI_CONTAINERID="c1", HOME="/root"
        )
    assert (heard.status, heard.out) == (3, b'{"fine": "\xc3\xa9"}\n')
    (question,) = asked
    assert question.environment == {
        "CNI_COMMAND": "ADD",
        "CNI_NETNS": NETNS,
        "CNI_ARGS": "A=1;B=x=y",
        "CNI_CONTAINERID": "c1",
    }
    assert question.stdin == b'{"name": "net"}'
    own = os.stat(NETNS)
    assert namespaces == [(own.st_dev, own.st_ino)]


@pytest.mark.parametrize("netns", ["", "/run/netns/never-there", "/etc/passwd/x"])
async def test_a_namespace_that_cannot_be_opened_is_left_out(executable: Executable, netns: str) -> None:
    async def answer(question: Question) -> Answer:
        return Answer(status=0, stdout=str(question.netns).encode())

    async with door(executable.socket, answer):
        assert (await executable.run("DEL", CNI_NETNS=netns)).out == b"None"
        assert (await executable.run("DEL")).out == b"None"


async def test_nothing_is_printed_when_the_answer_is_nothing(executable: Executable) -> None:
    async def answer(question: Question) -> Answer:
        return Answer(status=0, stdout=b"")

    async with door(executable.socket, answer):
        heard = await executable.run("DEL")
    assert (heard.status, heard.out) == (0, b"")


async def test_megabytes_pass_both_ways_and_more_is_refused(executable: Executable) -> None:
    async def answer(question: Question) -> Answer:
        return Answer(status=0, stdout=question.stdin[::-1])

    much = b"{" + os.urandom(source.STDIN_BOUND - 2) + b"}"
    async with door(executable.socket, answer):
        assert (await executable.run("GC", much)).out == much[::-1]
        refused = await executable.run("GC", much + b"\n")
    assert refused.status == 1
    assert refused.document["code"] == 6
    assert "longer than 4194304 bytes" in refused.document["msg"]


async def test_without_an_agent_it_says_so(executable: Executable) -> None:
    codes = {"ADD": 11, "DEL": 11, "CHECK": 11, "GC": 11, "STATUS": 50, "": 11}
    asked = b'{"cniVersion": "0.4.0", "name": "n"}'
    heard = await asyncio.gather(*(executable.run(command, asked) for command in codes))
    for code, each in zip(codes.values(), heard, strict=True):
        assert each.status == 1
        why = each.document["msg"]
        assert each.document == {"cniVersion": "0.4.0", "code": code, "msg": why}
        assert str(executable.socket) in why
        assert "muslin node" in why


async def test_an_agent_that_starts_again_is_waited_for(executable: Executable) -> None:
    async def answer(question: Question) -> Answer:
        return Answer(status=0, stdout=question.environment["CNI_COMMAND"].encode())

    async with executable.begun("ADD") as process:
        await until(lambda: _has_socket(process.pid))
        async with door(executable.socket, answer):
            out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"ADD", b"")


def _has_socket(pid: int) -> bool:
    try:
        return any(os.readlink(each).startswith("socket:") for each in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return False


async def test_a_socket_that_a_dead_agent_left_is_an_agent_away(executable: Executable) -> None:
    async with listening(executable.socket):
        pass
    heard = await executable.run("ADD")
    assert heard.document["code"] == 11
    assert "Connection refused" in heard.document["msg"]


@pytest.mark.parametrize("given", [b"", b"{", b"[]", b'{"cniVersion": 7}', b"\xff\xfe"])
async def test_what_cannot_be_read_is_answered_in_the_newest_version(executable: Executable, given: bytes) -> None:
    assert (await executable.run("ADD", given)).document["cniVersion"] == spec.VERSIONS[-1]
    assert (await executable.run("VERSION", given)).document["cniVersion"] == spec.VERSIONS[-1]


async def test_version_is_answered_without_an_agent(executable: Executable) -> None:
    heard = await executable.run("VERSION", b'{"cniVersion": "1.0.0"}')
    assert heard.status == 0
    assert heard.document == {"cniVersion": "1.0.0", "supportedVersions": list(spec.VERSIONS)}


@pytest.mark.parametrize("said", [b"", b"musc", source.MAGIC + bytes(7), source.MAGIC + bytes(7) + b"\x05half"])
async def test_an_agent_that_ends_in_the_middle_is_asked_again(executable: Executable, said: bytes) -> None:
    async with listening(executable.socket) as opened, executable.begun("ADD", b'{"cniVersion":"1.0.0"}') as process:
        connection, _ = await asyncio.get_running_loop().sock_accept(opened)
        with connection:
            await asyncio.get_running_loop().sock_recv(connection, 1 << 16)
            await asyncio.get_running_loop().sock_sendall(connection, said)
        out, err = await process.communicate()
    assert not err
    assert process.returncode == 1
    assert out.startswith(b'{"cniVersion": "1.0.0", "code": 11, ')
    assert b"has not answered" in out


async def test_an_agent_that_ends_before_it_has_read_is_asked_again(executable: Executable) -> None:
    much = b"{" + b" " * (3 << 20) + b"}"
    async with listening(executable.socket) as opened, executable.begun("ADD", much) as process:
        connection, _ = await asyncio.get_running_loop().sock_accept(opened)
        with connection:
            await asyncio.get_running_loop().sock_recv(connection, 1 << 10)
        out, _ = await process.communicate()
    assert process.returncode == 1
    assert b'"code": 11' in out
    assert b"has not read the question" in out


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad request\r\n\r\n", source.MAGIC + b"\0\0\0\0\xff\xff\xff\xff"])
async def test_somebody_else_at_the_socket_is_not_believed(executable: Executable, said: bytes) -> None:
    async with listening(executable.socket) as opened, executable.begun("ADD") as process:
        connection, _ = await asyncio.get_running_loop().sock_accept(opened)
        with connection:
            await asyncio.get_running_loop().sock_sendall(connection, said)
            out, _ = await process.communicate()
    assert process.returncode == 1
    assert b'"code": 5' in out
    assert b"muslin cni install" in out


@pytest.mark.parametrize("state", ["answering", "accepting"])
async def test_a_stuck_agent_is_given_up(tmp_path: Path, state: str) -> None:
    executable = install(tmp_path)
    text = executable.path.read_text()
    assert "LIMIT_S = 90\n" in text
    executable.path.write_text(text.replace("LIMIT_S = 90\n", "LIMIT_S = 1\n"))
    async with listening(executable.socket, backlog=0) as opened:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as before:
            if state == "accepting":
                before.connect(str(executable.socket))  # the one place there is
            heard = await executable.run("ADD")
        assert opened
    assert heard.document["code"] == 11
    assert "nothing was heard of it for 1 s" in heard.document["msg"]


async def test_sigterm_ends_it_at_once_and_the_question_is_taken_back(executable: Executable) -> None:
    undone = asyncio.Event()

    async def answer(question: Question) -> Answer:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            undone.set()
        return Answer(status=0, stdout=b"")

    async with door(executable.socket, answer) as served, executable.begun("ADD") as process:
        await until(lambda: served.metrics.under_way == 1)
        process.terminate()
        out, err = await process.communicate()
        assert (process.returncode, out, err) == (-signal.SIGTERM, b"", b"")
        async with asyncio.timeout(5):
            await undone.wait()
        await until(lambda: served.counted() == {("ADD", "gone"): 1})


async def test_an_answer_that_nobody_reads_is_a_failure_without_a_word(executable: Executable) -> None:
    async def answer(question: Question) -> Answer:
        return Answer(status=0, stdout=b"{}")

    reader, writer = os.pipe()
    os.close(reader)
    async with door(executable.socket, answer):
        try:
            process = await asyncio.create_subprocess_exec(
                executable.path, env={"CNI_COMMAND": "ADD"}, stdin=subprocess.DEVNULL, stdout=writer, stderr=-1
            )
        finally:
            os.close(writer)
        _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"")


async def test_it_says_what_it_was_made_for() -> None:
    assert list(spec.VERSIONS) == source.VERSIONS
    assert (source.TRY_AGAIN, source.NOT_AVAILABLE) == (spec.Code.TRY_AGAIN, spec.Code.NOT_AVAILABLE)
    assert (source.UNREADABLE, source.IO) == (spec.Code.DECODING, spec.Code.IO)
    assert MOST_CONNECTIONS * 2 < 1024
    assert source.LIMIT_S >= conf.MOST_WAIT_S + 30


async def test_the_good_path_imports_nothing_from_a_file(executable: Executable) -> None:
    async def answer(question: Question) -> Answer:
        return Answer(status=0, stdout=b"{}")

    async with door(executable.socket, answer):
        process = await asyncio.create_subprocess_exec(
            "/usr/bin/python3",
            "-ISv",
            executable.path,
            env={"CNI_COMMAND": "ADD"},
            stdin=subprocess.DEVNULL,
            stdout=-1,
            stderr=-1,
        )
        _, err = await process.communicate()
    assert process.returncode == 0
    assert b"import '_socket'" in err
    assert not [name for name in (b"json", b"signal", b"socket", b"os", b"enum") if b"import '%b'" % name in err]

"""The agent's door: whoever knocks, and however badly, nothing is left open and others are served."""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from asking import PATIENCE_S, Executable, descriptors, door, install, until
from structlog.testing import capture_logs

from cni import server
from cni.executable import ENVIRONMENT_BOUND, MAGIC, STDIN_BOUND
from cni.metrics import BOUNDS
from cni.model import Answer, Question
from core.errors import Unsupported
from core.health import Health
from core.metrics import exposed

ADD = b"CNI_COMMAND=ADD\0"


async def said(question: Question) -> Answer:
    """Answer with what was asked."""
    return Answer(status=0, stdout=question.stdin)


@pytest.fixture
def executable(tmp_path: Path) -> Executable:
    return install(tmp_path)


@contextlib.contextmanager
def knocking(path: Path) -> Iterator[socket.socket]:
    """A connection of our own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.connect(str(path))
        opened.setblocking(False)
        yield opened


def asking(stdin: bytes = b"{}", environment: bytes = ADD) -> bytes:
    return MAGIC + len(environment).to_bytes(4, "big") + len(stdin).to_bytes(4, "big") + environment + stdin


async def rest(connection: socket.socket) -> bytes:
    """Everything until the other end closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := await asyncio.get_running_loop().sock_recv(connection, 1 << 16):
            parts.append(part)
    return b"".join(parts)


@contextlib.asynccontextmanager
async def nothing_stays_open() -> AsyncIterator[None]:
    """No more descriptors are open in the end than were in the beginning."""
    gc.collect()
    before = descriptors()
    yield
    await until(lambda: descriptors() <= before)  # fewer, when something of an earlier test ends meanwhile


def head(environment: int, stdin: int) -> bytes:
    return MAGIC + environment.to_bytes(4, "big") + stdin.to_bytes(4, "big")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(head(ENVIRONMENT_BOUND + 1, 0), id="much environment"),
        pytest.param(head(0, STDIN_BOUND + 1), id="much input"),
        pytest.param(head(2**32 - 1, 2**32 - 1), id="all there can be"),
    ],
)
async def test_garbage_is_refused_with_a_line_in_the_log(executable: Executable, words: bytes) -> None:
    async with door(executable.socket, said) as served, nothing_stays_open():
        with capture_logs() as lines, knocking(executable.socket) as connection:
            connection.sendall(words)
            assert await rest(connection) in (b"", head(1, 0))
        assert [line["event"] for line in lines] == ["cni.refused"]
        assert (await executable.run("ADD")).out == b"{}"
        assert b"muslin_cni_refused_total 1.0" in exposed(served.metrics.families())


async def test_an_executable_of_another_version_hears_what_to_do(executable: Executable) -> None:
    executable.path.write_text(executable.path.read_text().replace("muscni1", "muscni0"))
    async with door(executable.socket, said):
        heard = await executable.run("ADD", CNI_NETNS="/proc/self/ns/net")
    assert heard.document["code"] == 5
    assert "muslin cni install" in heard.document["msg"]


@pytest.mark.parametrize("words", [b"", b"m", MAGIC, asking()[:-1]])
async def test_whoever_leaves_in_the_middle_of_a_question_leaves_nothing(executable: Executable, words: bytes) -> None:
    async with door(executable.socket, said) as served, nothing_stays_open():
        with knocking(executable.socket) as connection:
            connection.sendall(words)
        await until(lambda: b"muslin_cni_refused_total 1.0" in exposed(served.metrics.families()))
        assert served.counted() == {}


async def test_whoever_says_nothing_is_let_go(executable: Executable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "QUESTION_S", 0.2)
    async with door(executable.socket, said), nothing_stays_open():
        with knocking(executable.socket) as silent, knocking(executable.socket) as slow:
            slow.sendall(asking()[:20])
            async with asyncio.timeout(PATIENCE_S):
                assert await rest(silent) == b""
                assert await rest(slow) == b""


async def test_whoever_does_not_read_its_answer_is_let_go(
    executable: Executable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ANSWER_S", 0.2)
    async with door(executable.socket, said) as served, nothing_stays_open():
        with knocking(executable.socket) as deaf:
            await asyncio.get_running_loop().sock_sendall(deaf, asking(b" " * (2 << 20)))
            await until(lambda: b"muslin_cni_refused_total 1.0" in exposed(served.metrics.families()))
            assert len(await rest(deaf)) < 2 << 20


async def test_every_descriptor_is_closed_however_many_come(executable: Executable) -> None:
    asked: list[int | None] = []

    async def answer(question: Question) -> Answer:
        asked.append(question.netns)
        return Answer(status=0, stdout=b"")

    null = os.open("/dev/null", os.O_RDONLY)
    try:
        async with door(executable.socket, answer), nothing_stays_open():
            for count, words in (
                (1, asking()),
                (1, b"garbage" * 9),
                (1, b"m"),
                (2, asking()),
                (3, b"m"),
                (200, asking()),
            ):
                with knocking(executable.socket) as connection:
                    passed = array.array("i", [null] * count).tobytes()
                    connection.sendmsg([words], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
                    if words != b"m":
                        await rest(connection)
    finally:
        os.close(null)
    assert len(asked) == 1


async def test_a_hundred_calls_at_once_leave_no_descriptor(executable: Executable) -> None:
    async with door(executable.socket, said) as served, nothing_stays_open():
        for _ in range(2):
            async with asyncio.TaskGroup() as group:
                heard = [
                    group.create_task(executable.run("ADD", str(number).encode(), CNI_NETNS="/proc/self/ns/net"))
                    for number in range(50)
                ]
            assert [each.result().out for each in heard] == [str(number).encode() for number in range(50)]
        assert served.counted() == {("ADD", "0"): 100}


async def test_calls_wait_for_their_turn_and_status_does_not(executable: Executable) -> None:
    most, go = 2, asyncio.Event()
    at_once = [0, 0]

    async def answer(question: Question) -> Answer:
        if question.environment["CNI_COMMAND"] == "ADD":
            at_once[0] += 1
            at_once[1] = max(at_once)
            await go.wait()
            at_once[0] -= 1
        return Answer(status=0, stdout=b"")

    async with door(executable.socket, answer, most) as served, asyncio.TaskGroup() as group:
        adds = [group.create_task(executable.run("ADD")) for _ in range(6)]
        await until(lambda: served.metrics.under_way == 6)
        assert (await executable.run("STATUS")).status == 0
        go.set()
        assert [(await each).status for each in adds] == [0] * 6
    assert at_once == [0, most]


async def test_one_that_waits_for_its_turn_can_leave(executable: Executable) -> None:
    go, begun = asyncio.Event(), [0]

    async def answer(question: Question) -> Answer:
        begun[0] += 1
        await go.wait()
        return Answer(status=0, stdout=b"")

    async with door(executable.socket, answer, 1) as served:
        async with executable.begun("ADD") as first, executable.begun("ADD") as second:
            await until(lambda: served.metrics.under_way == 2)
            second.kill()
            await until(lambda: served.metrics.under_way == 1 or first.returncode is not None)
            go.set()
            await first.wait()
        assert (await executable.run("ADD")).status == 0
    assert begun == [2] or begun == [3]  # whichever of the two had its turn


async def test_undoing_is_waited_for_before_the_namespace_is_closed(executable: Executable) -> None:
    go, open_still = asyncio.Event(), asyncio.Event()

    async def answer(question: Question) -> Answer:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await go.wait()
            assert question.netns is not None
            os.fstat(question.netns)
            open_still.set()
        return Answer(status=0, stdout=b"")

    async with door(executable.socket, answer) as served, nothing_stays_open():
        async with executable.begun("ADD", CNI_NETNS="/proc/self/ns/net") as process:
            await until(lambda: served.metrics.under_way == 1)
            process.kill()
            await process.wait()
        assert served.metrics.under_way == 1
        go.set()
        await until(open_still.is_set)


async def test_a_bug_is_answered_and_the_next_one_served(executable: Executable) -> None:
    async def answer(question: Question) -> Answer:
        if question.environment["CNI_COMMAND"] == "ADD":
            raise ZeroDivisionError("one by nought")
        return Answer(status=0, stdout=b"x" * (5 << 20))

    async with door(executable.socket, answer) as served:
        with capture_logs() as lines:
            heard = await executable.run("ADD", b'{"cniVersion": "0.4.0"}')
            long = await executable.run("GC", b'{"cniVersion": "1.1.0"}')
        assert served.counted() == {("ADD", "999"): 1, ("GC", "999"): 1}
    assert heard.status == long.status == 1
    assert (heard.document["cniVersion"], heard.document["code"]) == ("0.4.0", 999)
    assert "one by nought" in heard.document["msg"]
    assert "4194304" in long.document["msg"]
    assert "cni.bug" in [line["event"] for line in lines]


async def test_calls_under_way_finish_when_the_agent_ends_and_nobody_new_is_let_in(executable: Executable) -> None:
    go = asyncio.Event()

    async def answer(question: Question) -> Answer:
        await go.wait()
        return Answer(status=0, stdout=b"done")

    async with asyncio.TaskGroup() as group, door(executable.socket, answer) as served:
        call = group.create_task(executable.run("ADD"))
        await until(lambda: served.metrics.under_way == 1)
        late = group.create_task(_late(executable, go))
    assert call.result().out == b"done"
    assert late.result() == 11
    assert not executable.socket.exists()


async def _late(executable: Executable, go: asyncio.Event) -> int:
    await until(lambda: not executable.socket.exists())
    try:
        return int((await executable.run("ADD")).document["code"])
    finally:
        go.set()


async def test_calls_that_do_not_finish_are_taken_back(executable: Executable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DRAIN_S", 0.1)
    undone = asyncio.Event()

    async def answer(question: Question) -> Answer:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            undone.set()
        return Answer(status=0, stdout=b"")

    async with asyncio.TaskGroup() as group, door(executable.socket, answer) as served:
        call = group.create_task(executable.run("ADD"))
        await until(lambda: served.metrics.under_way == 1)
    assert undone.is_set()
    assert call.result().document["code"] == 11


async def test_the_socket_is_roots_and_replaces_a_dead_ones(executable: Executable) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(executable.socket))
    async with door(executable.socket, said):
        found = executable.socket.stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert found.st_uid == 0
        assert (await executable.run("ADD")).out == b"{}"
        async with door(executable.socket, said):  # an agent that is not alone leaves its successor's socket there
            assert executable.socket.stat().st_ino != found.st_ino
        assert not executable.socket.exists()


async def test_its_folder_is_made_for_root_alone(tmp_path: Path) -> None:
    made = install(tmp_path, tmp_path / "run" / "cni.sock")
    async with door(made.socket, said):
        assert stat.S_IMODE(made.socket.parent.stat().st_mode) == 0o700


async def test_a_path_that_cannot_be_is_said(tmp_path: Path) -> None:
    health = Health(["server"])
    for path in (tmp_path / ("x" * 120), Path("/proc/muslin/cni.sock")):
        with pytest.raises(ExceptionGroup) as raised:
            await server.Server(path, said, health, door_metrics()).serve()
        (why,) = raised.value.exceptions
        assert isinstance(why, Unsupported)
        assert str(path) in str(why)


def door_metrics() -> server.Metrics:
    return server.Metrics()


async def test_only_root_is_answered(tmp_path_factory: pytest.TempPathFactory, executable: Executable) -> None:
    program = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); os.setuid(65534);"
        "t = socket.socket(socket.AF_UNIX); t.connect(sys.argv[1]); t.sendall(sys.stdin.buffer.read());"
        "sys.exit(len(t.recv(100)))"
    )
    folder = Path("/tmp") / f"muslin-door-{os.getpid()}"  # where others may come in
    folder.mkdir(mode=0o755)
    try:
        async with door(folder / "cni.sock", said):
            (folder / "cni.sock").chmod(0o666)
            with capture_logs() as lines:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", program, folder / "cni.sock", stdin=-1, stderr=subprocess.PIPE
                )
                _, err = await process.communicate(asking())
        assert process.returncode == 0 or b"ConnectionResetError" in err or b"BrokenPipe" in err
        refused = [line["why"] for line in lines if line["event"] == "cni.refused"]
        assert [why for why in refused if "of user 65534 may not ask" in why]
    finally:
        folder.rmdir()


async def test_what_it_measures_is_told(executable: Executable) -> None:
    async with door(executable.socket, said) as served:
        for command in ("ADD", "ADD", "MAKE-COFFEE"):
            await executable.run(command)
        text = exposed(served.metrics.families()).decode()
    assert 'muslin_cni_requests_total{code="0",verb="ADD"} 2.0' in text
    assert 'muslin_cni_requests_total{code="0",verb="other"} 1.0' in text
    assert 'muslin_cni_request_seconds_bucket{le="+Inf",verb="ADD"} 2.0' in text
    assert f'muslin_cni_request_seconds_bucket{{le="{BOUNDS[-1]}",verb="ADD"}} 2.0' in text
    assert 'muslin_cni_request_seconds_count{verb="ADD"} 2.0' in text
    assert "muslin_cni_requests_in_flight 0.0" in text

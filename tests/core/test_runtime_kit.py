"""The runtime kit: logs hide passwords, health answers truly, services end in order."""

import asyncio
import io
import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog

from core import health, log, supervise
from core.errors import Invalid, Unavailable, Unsupported, on_purpose
from core.reconcile import Progress


@pytest.fixture(autouse=True)
def _restore_structlog():
    yield
    structlog.reset_defaults()


def logged(level: str = "info", **fields: object) -> dict[str, object]:
    stream = io.StringIO()
    log.configure(level, json=True, stream=stream)
    structlog.get_logger().info("peer.configured", **fields)
    return json.loads(stream.getvalue())


def test_log_line_is_json_with_level_time_and_fields() -> None:
    line = logged(peer="10.0.0.1", routes=3)
    assert line["event"] == "peer.configured"
    assert (line["level"], line["peer"], line["routes"]) == ("info", "10.0.0.1", 3)
    assert str(line["timestamp"]).endswith("Z")


def test_log_hides_passwords_wherever_they_hide() -> None:
    line = logged(
        password="hunter2",
        peer={"address": "10.0.0.1", "md5Password": "hunter2", "all": ["password: hunter2"]},
        config="neighbor 10.0.0.1 { md5-password 'hunter2'; hold-time 9; }",
        url="password=hunter2;x=1",
    )
    text = json.dumps(line)
    assert "hunter2" not in text
    assert "hold-time 9" in text
    assert '"address": "10.0.0.1"' in text


def test_a_crash_is_logged_without_the_values_around_it() -> None:
    stream = io.StringIO()
    log.configure(json=True, stream=stream)
    hidden = "hunter" + "2"
    try:
        int(f"{len(hidden)}x")
    except ValueError:
        structlog.get_logger().exception("service.crashed")
    assert "ValueError" in stream.getvalue()
    assert hidden not in stream.getvalue()


def test_log_level_filters_and_an_unknown_one_is_refused() -> None:
    stream = io.StringIO()
    log.configure("warning", json=False, stream=stream)
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud", why="because")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()
    with pytest.raises(Invalid, match="no such log level"):
        log.configure("shouting")


async def ask(path: Path, target: str) -> tuple[int, dict[str, object]]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split(b" ")[1]), json.loads(body) if body else {}


async def test_health_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "health.sock"
    state = health.Health(["routes", "policy"])
    async with asyncio.timeout(10):
        server = asyncio.create_task(health.serve(state, f"unix:{path}"))
        while not path.exists():  # noqa: ASYNC110 - a socket that appears gives no event
            await asyncio.sleep(0.01)
        assert (await ask(path, "/liveness"))[0] == 200
        assert (await ask(path, "/readiness"))[0] == 503
        state.ok("routes")
        state.ok("policy")
        assert (await ask(path, "/readiness"))[0] == 200
        state.degraded("policy", "no nft")
        status, body = await ask(path, "/readiness")
        assert status == 503
        assert body["components"]["policy"]["reason"] == "no nft"
        assert (await ask(path, "/elsewhere"))[0] == 404
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server
    assert not path.exists()


def ask_blocking(path: Path) -> bytes:
    """Ask from a thread."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(5)
        caller.connect(str(path))
        caller.sendall(b"GET /liveness HTTP/1.1\r\n\r\n")
        return caller.recv(65536)


async def test_an_answer_does_not_wait_for_the_work_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "health.sock"
    server = asyncio.create_task(health.serve(health.Health(["policy"]), f"unix:{path}"))
    async with asyncio.timeout(10):
        while not path.exists():  # noqa: ASYNC110 - a socket that appears gives no event
            await asyncio.sleep(0.01)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_blocking, path)
        assert asking.result(5).startswith(b"HTTP/1.1 200")  # our own loop does not turn meanwhile
    server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server
    assert not path.exists()


def test_a_reconciler_is_ok_once_something_is_programmed_and_says_what_is_wrong() -> None:
    state = health.Health(["routes"])

    def said(progress: Progress) -> tuple[str, str]:
        state.round("routes", progress)
        component = json.loads(state.report())["components"]["routes"]
        return component["state"], component["reason"]

    assert said(Progress(tried=1)) == ("starting", "")
    errors = {f"10.0.0.{number}/32": "no such device" for number in range(5)}
    assert said(Progress(tried=1, errors=errors)) == (
        "degraded",
        "10.0.0.0/32: no such device; 10.0.0.1/32: no such device; 10.0.0.2/32: no such device; and 2 more",
    )
    assert said(Progress(revision=1, tried=1)) == ("ok", "")
    assert said(Progress(revision=1, tried=2, failure="routes: no buffers")) == ("degraded", "routes: no buffers")
    assert not state.ready


async def test_another_process_says_how_it_is(tmp_path: Path) -> None:
    theirs, ours, path = health.Health(["nft", "routes"]), health.Health(["felix"]), tmp_path / "felix.health"
    theirs.ok("nft")
    with pytest.raises(OSError, match="No such file"):
        await health.ask(path)
    server = asyncio.create_task(health.serve(theirs, f"unix:{path}"))
    async with asyncio.timeout(10):
        while not path.exists():  # noqa: ASYNC110 - a socket that appears gives no event
            await asyncio.sleep(0.01)
    ours.ok("felix")
    ours.adopt("felix", await health.ask(path))
    assert not ours.ready
    assert set(json.loads(ours.report())["components"]) == {"felix", "felix.nft", "felix.routes"}
    theirs.ok("routes")
    ours.adopt("felix", await health.ask(path))
    assert ours.ready
    server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server


async def test_an_address_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Unsupported, match="cannot serve health on"):
        await health.serve(health.Health([]), f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(Unsupported, match="cannot serve health on"):
        await health.serve(health.Health([]), f"unix:{tmp_path}/no/such/folder")


def test_since_moves_only_when_the_state_does() -> None:
    state = health.Health(["bgp"])
    state._components["bgp"] = health.Component(state=health.State.DEGRADED, since="2020-01-01T00:00:00Z", reason="a")
    state.degraded("bgp", "b")
    assert json.loads(state.report())["components"]["bgp"] == {
        "state": "degraded",
        "since": "2020-01-01T00:00:00Z",
        "reason": "b",
    }
    state.ok("bgp")
    assert json.loads(state.report())["components"]["bgp"]["since"] > "2020-01-01T00:00:00Z"


@pytest.mark.parametrize("address", ["0.0.0.0:9099", "192.0.2.1:80", "nonsense"])
async def test_health_is_not_for_strangers(address: str) -> None:
    with pytest.raises(Invalid, match="only"):
        await health.serve(health.Health([]), address)


class Steps:
    """Services that write down when they begin and end."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def service(self, name: str, then: str | None = None) -> supervise.Service:
        async def serve() -> None:
            self.seen.append(f"+{name}")
            try:
                if then == "signal":
                    os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.Event().wait()
            finally:
                self.seen.append(f"-{name}")

        return serve


async def test_a_signal_ends_services_in_reverse_order_with_code_0() -> None:
    steps = Steps()
    services = {"a": steps.service("a"), "b": steps.service("b"), "c": steps.service("c", then="signal")}
    async with asyncio.timeout(10):
        assert await supervise.run(services) == 0
    assert steps.seen == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_the_machine_lacks_is_one_sentence_and_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps()

    async def lacks() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_lacking())

    assert supervise.main({"a": steps.service("a"), "b": lacks}) == supervise.CANNOT_RUN == 78
    assert steps.seen == ["+a", "-a"]
    assert capsys.readouterr().err == "run it as root\n"


async def _lacking() -> None:
    raise Unsupported("run it as root")


GROUPED = ExceptionGroup(
    "tasks", [ExceptionGroup("more", [Unavailable("the store is away")]), Unavailable("so is nft")]
)


def test_errors_on_purpose_are_told_from_bugs_through_groups() -> None:
    assert [str(each) for each in on_purpose(GROUPED)] == ["the store is away", "so is nft"]
    assert on_purpose(ExceptionGroup("tasks", [Unavailable("away"), ValueError("a bug")])) == ()


@pytest.mark.parametrize("error", [Unavailable("the store is away"), ValueError("a bug"), None])
async def test_a_service_that_ends_takes_the_process_with_it(error: Exception | None) -> None:
    steps = Steps()

    async def ends() -> None:
        if error:
            raise error

    with structlog.testing.capture_logs() as lines:
        async with asyncio.timeout(10):
            assert await supervise.run({"a": steps.service("a"), "b": ends}) == 1
    assert steps.seen == ["+a", "-a"]
    assert [line["service"] for line in lines] == ["b"]


async def test_a_service_that_is_slow_to_end_is_named() -> None:
    steps = Steps()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(asyncio.create_task(asyncio.sleep(0.1)))

    with structlog.testing.capture_logs() as lines:
        async with asyncio.timeout(10):
            code = await supervise.run({"slow": slow, "b": steps.service("b", then="signal")}, grace_s=0.01)
    assert code == 0
    assert [(line["event"], line["service"]) for line in lines] == [("service.slow_to_end", "slow")]

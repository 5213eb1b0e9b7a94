"""`muslin lab` as a user types it: what it says, what it refuses, and that nothing is left whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.__main__ import main
from core.errors import MuslinError, Unsupported
from lab import cluster as clusters
from lab import frr, processes, state, underlay
from lab import status as overview
from linux import netns

pytestmark = pytest.mark.lab

HOUSE = Path(__file__).parents[2]
EXAMPLE = HOUSE / "examples" / "dual-stack"
MUSLIN = [sys.executable, "-m", "cli"]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A topology under a name of its own, whose lab is gone at the end."""
    name = f"u{os.getpid()}"
    shutil.copytree(EXAMPLE, tmp_path / "lab")
    path = tmp_path / "lab" / "topology.yaml"
    path.write_text(path.read_text().replace("name: dual-stack", f"name: {name}"))
    yield path
    asyncio.run(clusters.down(name))


def name_of(file: Path) -> str:
    return file.read_text().partition("\nname: ")[2].partition("\n")[0]


def muslin(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `muslin WORDS`."""
    return subprocess.run(
        [*MUSLIN, *map(str, words)],
        cwd=HOUSE,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def assert_gone(name: str) -> None:
    """Nothing of the lab is left."""
    assert not netns.names(underlay.prefix(name))
    assert not state.directory(name).exists()


def test_what_up_says_to_type_next_works(file: Path) -> None:
    name = name_of(file)
    up = muslin("lab", "up", file)
    assert up.returncode == 0, up.stderr
    socket = f"unix:{state.directory(name)}/datastore.sock"
    assert up.stdout == f"export MUSLIN_DATASTORE={socket}\n"  # and no more, for `eval`
    steps = [line.strip() for line in up.stderr.splitlines() if line.startswith("  ")]
    assert [shlex.split(step)[0] for step in steps] == [shlex.split(steps[0])[0]] * len(steps)
    *looks, down = [shlex.split(step)[1:] for step in steps]
    assert [words[:2] for words in looks] == [["status"], ["lab", "status"], ["lab", "exec"], ["lab", "exec"]]
    said = [muslin(*words, MUSLIN_DATASTORE=socket) for words in looks]
    assert [each.returncode for each in said] == [0] * len(looks), [each.stderr for each in said]
    assert "2/2" in said[0].stdout
    sessions = ("node2", "node2 (IPv6)", "tor1", "tor1 (IPv6)")
    assert ", ".join(f"{each} Established" for each in sessions) in said[1].stdout
    assert "router (frr, AS 65002)" in said[1].stdout
    assert "proto 201" in said[2].stdout
    assert "1 received" in said[3].stdout

    again = muslin("lab", "up", file)
    assert (again.returncode, again.stdout) == (1, "")
    assert f"lab {name} is up already" in again.stderr
    assert muslin("lab", "exec", file, "shop/web-1", "sh", "-c", "exit 7").returncode == 7
    nobody = muslin("lab", "exec", name, "shop/web-9", "true")
    assert nobody.returncode == 1
    assert "has no 'shop/web-9'; it has" in nobody.stderr
    hosts = {host["name"]: host for host in json.loads(muslin("lab", "status", name, "-o", "json").stdout)}
    assert hosts["node1"]["processes"] == {"felix@node1": True, "bgp@node1": True}
    assert len(hosts["shop/web-1"]["addresses"]) == 2

    done = muslin(*down)
    assert (done.returncode, done.stderr) == (0, f"taking lab {name} down\n")
    assert_gone(name)
    nothing = muslin("lab", "down", file)
    assert (nothing.returncode, nothing.stderr) == (0, f"lab {name} is not up: nothing to take down\n")


Refusal = Callable[..., str]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refusal:
    """What `muslin lab WORDS` says as it fails; in this process, for speed."""

    def refusal(*words: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["muslin", "lab", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert (end.value.code, out) == (1, "")
        return err

    return refusal


@pytest.mark.parametrize("words", ["up {}", "down {}", "status {}", "exec {} node1 true"])
def test_a_file_that_is_not_there_is_named(words: str, tmp_path: Path, refusal: Refusal) -> None:
    missing = tmp_path / "none.yaml"
    assert refusal(*words.format(missing).split()) == f"{missing}: cannot be read: No such file or directory\n"


def test_a_wrong_field_is_refused_with_its_path_before_anything_is_made(file: Path, refusal: Refusal) -> None:
    file.write_text(file.read_text().replace("{name: rack2, router: tor2}", "{name: rack2, rooter: tor2}"))
    assert refusal("up", file) == f"{file}: racks[1]: Object contains unknown field `rooter`\n"
    assert_gone(name_of(file))


@pytest.mark.parametrize("word", ["..", ".", "", "../lab"])
def test_what_is_no_name_leads_nowhere(word: str, refusal: Refusal) -> None:
    assert "cannot be read" in refusal("down", word)
    with pytest.raises(MuslinError, match="no lab's name"):
        asyncio.run(clusters.down(word))


@pytest.mark.parametrize("words", ["status nowhere", "exec nowhere node1 true"])
def test_a_lab_that_is_not_up_is_named(words: str, refusal: Refusal) -> None:
    assert refusal(*words.split()).startswith("no lab nowhere is up (up now: ")


@pytest.mark.parametrize(
    ("moment", "number"),
    [("hosts, ", signal.SIGINT), ("routers run", signal.SIGHUP), ("pods created", signal.SIGINT)],
    ids=["underlay", "manifests", "agents"],
)
def test_an_interrupted_up_leaves_nothing(moment: str, number: signal.Signals, file: Path) -> None:
    # as a terminal does it: the signal goes to the whole group, and so to the `ip` or `birdc` that runs just then
    with subprocess.Popen(
        [*MUSLIN, "lab", "up", str(file)], cwd=HOUSE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stderr is not None
        try:
            line = next(line for line in child.stderr if moment in line)
            os.killpg(child.pid, number)
            rest = child.stderr.read()
        finally:
            child.kill()
    assert child.returncode == 128 + number, line + rest
    assert rest.endswith(f"taking lab {name_of(file)} down\n")
    assert_gone(name_of(file))


async def test_two_ups_at_once_are_one(file: Path) -> None:
    name = name_of(file)
    begun = asyncio.Event()
    first = asyncio.create_task(clusters.up(file, lambda _: begun.set()))
    await begun.wait()
    with pytest.raises(MuslinError, match=f"lab {name} is coming up already.*muslin lab down {name}"):
        await clusters.up(file, lambda _: None)
    # a cancellation that comes again while the lab is taken down does not leave half of it
    for _ in range(3):
        first.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert_gone(name)


def test_a_router_that_is_not_installed_is_named_with_its_package(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(frr, "HOME", tmp_path)
    with pytest.raises(Unsupported, match="kind frr needs FRR; install it: apt-get install frr"):
        asyncio.run(clusters.up(file, said.append))
    ip = shutil.which("ip")
    assert ip is not None
    (tmp_path / "ip").symlink_to(ip)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="kind bird needs BIRD 2; install it: apt-get install bird2"):
        asyncio.run(clusters.up(file, said.append))
    (tmp_path / "ip").unlink()
    with pytest.raises(Unsupported, match=r"no `ip` command.*apt-get install iproute2"):
        asyncio.run(clusters.up(file, said.append))
    assert not said
    assert_gone(name_of(file))


def test_without_root_every_command_says_so(file: Path) -> None:
    calls = (
        lambda: asyncio.run(clusters.up(file, print)),
        lambda: asyncio.run(clusters.down("nowhere")),
        lambda: overview.status("nowhere"),
        lambda: clusters.exec_in("nowhere", "node1", ["true"]),
    )
    os.seteuid(65534)
    try:
        for call in calls:
            with pytest.raises(Unsupported, match=r"needs root.*with sudo"):
                call()
    finally:
        os.seteuid(0)


def test_a_record_tells_a_lab_that_is_up_from_one_that_was() -> None:
    name, file = "recorded", "topology.yaml"
    stopped = processes.Process(os.getpid(), 1)  # our pid, another start: a process that is no more
    assert not state.Record(name=name, topology=file, builder=state.Started.of(stopped)).coming_up
    alive = state.Started.of(processes.known([os.getpid()])[0])
    assert state.Record(name=name, topology=file, builder=alive).coming_up
    whole = state.Record(name=name, topology=file, builder=alive, complete=True, processes={"felix@node1": alive})
    assert whole.up
    assert not whole.coming_up
    assert not state.Record(name=name, topology="", complete=True, processes={"x": state.Started.of(stopped)}).up

"""`muslin cni install` and `uninstall`: what runtimes find, when, and what of others' is left alone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni.install import executable_text

Muslin = Callable[[str], Any]
HERE = Path("/usr/lib/cni")
"""Where Debian puts the CNI project's plugins; the build machine has them."""


@dataclass
class Host:
    """A host's folders, and the command that fills them."""

    folder: Path
    muslin: Muslin

    @property
    def executable(self) -> Path:
        return self.folder / "bin" / "muslin"

    @property
    def conflist(self) -> Path:
        return self.folder / "net.d" / "10-muslin.conflist"

    @property
    def folders(self) -> str:
        return f"--bin-dir {self.folder}/bin --conf-dir {self.folder}/net.d"

    def install(self, words: str = "") -> Any:
        return self.muslin(f"cni install {self.folders} --run-dir {self.folder}/run {words}")

    def uninstall(self, words: str = "") -> Any:
        return self.muslin(f"cni uninstall {self.folders} {words}")

    def network(self) -> dict[str, Any]:
        found = json.loads(self.conflist.read_text())
        assert isinstance(found, dict)
        return found


@pytest.fixture
def host(tmp_path: Path, muslin: Muslin) -> Host:
    return Host(tmp_path, muslin)


def test_it_writes_an_executable_that_runs_and_a_network_that_names_it(host: Host) -> None:
    done = host.install()
    assert done.code == 0, done.err
    assert str(host.executable) in done.out
    assert str(host.conflist) in done.out
    assert host.executable.read_text() == executable_text(host.folder / "run" / "cni.sock")
    assert stat.S_IMODE(host.executable.stat().st_mode) == 0o755
    assert stat.S_IMODE(host.conflist.stat().st_mode) == 0o644
    network = host.network()
    assert (network["cniVersion"], network["name"]) == ("1.0.0", "k8s-pod-network")
    assert [plugin["type"] for plugin in network["plugins"]] == ["muslin", "portmap", "bandwidth"]
    assert network["plugins"][0]["capabilities"]["io.kubernetes.cri.pod-annotations"] is True
    assert network["plugins"][1]["capabilities"] == {"portMappings": True}
    assert network["plugins"][2]["capabilities"] == {"bandwidth": True}
    ran = subprocess.run(
        [host.executable], env={"CNI_COMMAND": "ADD"}, input=b"{}", capture_output=True, check=False, timeout=20
    )
    assert ran.returncode == 1
    assert str(host.folder / "run" / "cni.sock") in json.loads(ran.stdout)["msg"]
    assert not list(host.folder.glob("*/.*")), "nothing half-written stays"


def test_it_takes_a_name_a_type_and_an_mtu(host: Host) -> None:
    assert host.install("--name blue --type weaver --mtu 1440 --chain none").code == 0
    assert (host.folder / "bin" / "weaver").exists()
    network = host.network()
    assert network["name"] == "blue"
    (plugin,) = network["plugins"]
    assert (plugin["type"], plugin["mtu"]) == ("weaver", 1440)
    assert host.uninstall("--type weaver").code == 0
    assert not list(host.folder.glob("*/*"))


def test_plugins_are_chained_as_they_are_found_or_asked_for(host: Host) -> None:
    assert [*_chained(host, "--chain bandwidth")] == ["bandwidth"]
    assert [*_chained(host, "--chain bandwidth,portmap")] == ["portmap", "bandwidth"]
    assert [*_chained(host, "")] == ["portmap", "bandwidth"]
    said = json.loads(host.install("-o json").out)
    assert said["chained"] == ["portmap", "bandwidth"]
    assert said["notes"] == [
        f"{name} lies in {HERE}: the runtime has to look there, too" for name in ("portmap", "bandwidth")
    ]
    for name in ("portmap", "bandwidth"):
        (host.folder / "bin" / name).symlink_to(HERE / name)
    assert json.loads(host.install("-o json").out)["notes"] == []


def _chained(host: Host, words: str) -> Iterator[str]:
    assert host.install(words).code == 0
    yield from (plugin["type"] for plugin in host.network()["plugins"][1:])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--chain sbr", "none of portmap, bandwidth"),
        ("--type a/b", "no name of a file"),
        ("--mtu 1000", "mtu"),
        ("--name 'blue net'", "name"),
        ("--run-dir run", "not an absolute path"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(host: Host, words: str, why: str) -> None:
    done = host.install(words)
    assert done.code == 1
    assert why in done.err
    assert not list(host.folder.iterdir())


def test_others_files_are_left_alone(host: Host) -> None:
    host.conflist.parent.mkdir()
    host.conflist.write_text('{"plugins": [{"type": "calico"}]}')
    refused = host.install()
    assert refused.code == 1
    assert f"{host.conflist} is not muslin's" in refused.err
    assert not host.executable.exists()
    assert host.uninstall().code == 1
    assert "calico" in host.conflist.read_text()
    assert host.install("--force").code == 0
    assert host.network()["plugins"][0]["type"] == "muslin"
    host.executable.write_text("#!/bin/sh\n")
    assert "is not muslin's" in host.install().err
    assert "is not muslin's" in host.uninstall().err
    assert host.conflist.exists(), "all or nothing"
    assert host.uninstall("--force").code == 0
    assert not host.executable.exists()
    assert not host.conflist.exists()


def test_a_network_that_comes_first_is_named(host: Host) -> None:
    host.conflist.parent.mkdir()
    (host.conflist.parent / "05-other.conf").write_text("{}")
    (host.conflist.parent / "00-README").write_text("")
    (host.conflist.parent / "87-podman.conflist").write_text("{}")
    done = host.install("--chain none")
    assert done.code == 0
    assert "05-other.conf comes before ours" in done.err
    assert "README" not in done.err


def test_again_changes_nothing_and_uninstall_removes_both(host: Host) -> None:
    host.install()
    before = host.executable.read_text(), host.conflist.read_text()
    assert host.install().code == 0
    assert (host.executable.read_text(), host.conflist.read_text()) == before
    done = host.uninstall("-o json")
    assert json.loads(done.out) == {"removed": [str(host.conflist), str(host.executable)]}
    again = host.uninstall()
    assert (again.code, again.out) == (0, "there is nothing to remove\n")


def test_a_runtime_sees_whole_files_and_no_network_without_its_plugin(host: Host) -> None:
    wrong: list[str] = []
    rounds, over = [0], threading.Event()

    def watch() -> None:
        """A runtime that looks all the time."""
        while not over.is_set():
            rounds[0] += 1
            try:
                network = json.loads(host.conflist.read_text())
            except FileNotFoundError:
                continue
            except ValueError as error:
                wrong.append(str(error))
                continue
            if not network["plugins"]:
                wrong.append("a network of nothing")
            if not os.access(host.executable, os.X_OK) and host.conflist.exists():
                wrong.append("a network without its plugin")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(30):
            assert host.install().code == 0
            assert host.uninstall().code == 0
    finally:
        over.set()
        watcher.join()
    assert rounds[0] > 100
    assert not wrong


def test_a_folder_that_cannot_be_written_is_said(host: Host) -> None:
    done = host.muslin(f"cni install --bin-dir /proc/bin --conf-dir {host.folder}/net.d")
    assert done.code == 1
    assert "/proc/bin/muslin cannot be written" in done.err
    assert not host.conflist.exists()


def test_the_agent_wants_to_know_its_node(muslin: Muslin) -> None:
    done = muslin("cni")
    assert done.code == 2
    assert "--node" in done.err

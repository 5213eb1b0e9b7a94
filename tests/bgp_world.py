"""A small world for real sessions: namespaces, wires, BIRD, FRR, agents; and everything gone afterwards."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import msgspec

from core.resources import BGPConfiguration, BGPPeer, IPAMBlock, IPPool, Node, R, Resource
from core.resources.status import SessionState, SpeakerState

ROOT = Path(__file__).parents[1]


def until(what: str, holds: Callable[[], Any], timeout_s: float = 20.0, every_s: float = 0.05) -> float:
    """Wait until `holds()` is true; how long it took, in seconds."""
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > timeout_s:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - begun


def made(cls: type[R], name: str, spec: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> R:
    """A resource from the fields of its manifest."""
    return msgspec.convert({"metadata": {"name": name, "labels": labels or {}}, "spec": spec}, cls)


def node(name: str, *addresses: str, labels: Mapping[str, str] | None = None, **bgp: Any) -> Node:
    by_version = {f"ipv{ip_interface(each).version}Address": each for each in addresses}
    return made(Node, name, {"bgp": {**by_version, **bgp}}, labels)


def pool(name: str, cidr: str, **spec: Any) -> IPPool:
    return made(IPPool, name, {"cidr": cidr, **spec})


def block(cidr: str, owner: str, **spec: Any) -> IPAMBlock:
    return made(IPAMBlock, re.sub(r"[.:/]", "-", cidr), {"cidr": cidr, "affinity": f"host:{owner}", **spec})


def peer(name: str, ip: str, **spec: Any) -> BGPPeer:
    return made(BGPPeer, name, {"peerIP": ip, **spec})


def defaults(**spec: Any) -> BGPConfiguration:
    return made(BGPConfiguration, "default", spec)


class World:
    """Namespaces named after this process, and what runs in them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._namespaces: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []
        self._folders: list[Path] = []

    def namespace(self, name: str) -> str:
        full = f"bgp{os.getpid()}{name}"
        if full not in self._namespaces:
            self.run("ip", "netns", "add", full)
            self._namespaces.append(full)
            self.run("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def wire(self, one: str, one_address: Sequence[str], other: str, other_address: Sequence[str]) -> None:
        """A veth between two namespaces; each end is called after the other."""
        here, there = self.namespace(one), self.namespace(other)
        self.run("ip", "-n", here, "link", "add", other, "type", "veth", "peer", "name", one, "netns", there)
        for place, device, addresses in ((here, other, one_address), (there, one, other_address)):
            for address in addresses:
                self.run(
                    "ip", "-n", place, "addr", "add", address, "dev", device, *(["nodad"] if ":" in address else [])
                )
            self.run("ip", "-n", place, "link", "set", device, "up")

    def run(self, *argv: str) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def command(self, place: str, *argv: str) -> list[str]:
        """`argv`, to be run inside a namespace."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(place)}", "--", *argv]

    def start(self, place: str, *argv: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(self.command(place, *argv), text=True, **options)
        self._processes.append(process)
        return process

    def routes(self, place: str, *, version: int = 4, protocol: str = "201") -> dict[str, Any]:
        """Kernel routes by prefix."""
        said = self.run("ip", "-n", self.namespace(place), "-j", f"-{version}", "route", "show", "proto", protocol)
        return {route["dst"]: route for route in json.loads(said)}

    def folder(self, path: Path) -> Path:
        path.mkdir(parents=True)
        self._folders.append(path)
        return path

    def close(self) -> None:
        for log in self.scratch.glob("*.log"):
            print(f"--- {log.name}\n{log.read_text()[-4000:]}")  # pytest shows it when the test failed
        for process in reversed(self._processes):
            if process.poll() is None:
                process.kill()
            process.wait(timeout=10)
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
        for name in self._namespaces:
            for pid in subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            ).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], check=False)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)


class Bird:
    """A BIRD; `body` is the configuration beyond device and router id."""

    def __init__(self, world: World, place: str, router_id: str) -> None:
        self._world = world
        self._conf, self.control = world.scratch / f"{place}.conf", world.scratch / f"{place}.ctl"
        self._place, self._router_id = place, router_id
        self.process: subprocess.Popen[str] | None = None

    def start(self, body: str, *options: str) -> None:
        self._write(body)
        argv = ("bird", "-f", *options, "-c", str(self._conf), "-s", str(self.control))
        self.process = self._world.start(self._place, *argv, stderr=subprocess.DEVNULL)
        until("BIRD answers", lambda: self.control.exists())

    def configure(self, body: str) -> None:
        self._write(body)
        assert "Reconfig" in self.ask("configure")

    def ask(self, *words: str) -> str:
        return self._world.run("birdc", "-s", str(self.control), *words)

    def up(self, session: str) -> bool:
        return "Established" in self.ask("show", "protocols", session)

    def prefixes(self, session: str, *more: str) -> set[str]:
        """What the session has imported."""
        table = self.ask("show", "route", "protocol", session, *more)
        return set(re.findall(r"^([\da-f.:]+/\d+)", table, re.MULTILINE))

    def _write(self, body: str) -> None:
        self._conf.write_text(f"router id {self._router_id};\nprotocol device {{ scan time 1; }}\n{body}")


class Frr:
    """An FRR: zebra and bgpd by hand, in a folder that its own user can reach."""

    def __init__(self, world: World, place: str, bgpd: str, daemons: Sequence[str] = ("zebra", "bgpd")) -> None:
        self._folder = world.folder(Path(tempfile.gettempdir()) / f"frr-{os.getpid()}-{place}")
        self._world, self._place = world, place
        self._running: dict[str, subprocess.Popen[str]] = {}
        shutil.chown(self._folder, "frr", "frr")
        for name, text in {**dict.fromkeys(daemons, ""), "bgpd": bgpd, "vtysh": ""}.items():
            self.write(name, text)
        for daemon in daemons:
            self.start(daemon)

    def write(self, daemon: str, text: str) -> None:
        """Its configuration file, for when it starts."""
        path = self._folder / f"{daemon}.conf"
        path.write_text(f"hostname {self._place}\n{text}\n")
        shutil.chown(path, "frr", "frr")

    def start(self, daemon: str) -> None:
        here = str(self._folder)
        argv = ["-f", f"{here}/{daemon}.conf", "-i", f"{here}/{daemon}.pid", "-z", f"{here}/zserv.api"]
        argv += ["--vty_socket", here, "-P", "0", "-u", "frr", "-g", "frr", "--log", f"file:{here}/{daemon}.out"]
        argv += ["--bfdctl", f"{here}/bfdd.sock"] if daemon == "bfdd" else []
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._running[daemon] = self._world.start(self._place, f"/usr/lib/frr/{daemon}", *argv, **quiet)
        until(f"{daemon} answers", (self._folder / f"{daemon}.vty").exists)

    def signal(self, daemon: str, number: signal.Signals) -> None:
        self._running[daemon].send_signal(number)

    def kill(self, daemon: str) -> None:
        """End a daemon as a crash does."""
        self._running[daemon].kill()
        self._running[daemon].wait(timeout=10)
        (self._folder / f"{daemon}.vty").unlink()

    def ask(self, *commands: str) -> str:
        """What vtysh prints for commands given one after the other."""
        words = [word for command in commands for word in ("-c", command)]
        here = str(self._folder)
        return self._world.run("vtysh", "--vty_socket", here, "--config_dir", here, *words)

    def prefixes(self, address: str) -> set[str]:
        """What a neighbour told it."""
        family = f"ipv{ip_address(address).version}"
        table = json.loads(self.ask(f"show bgp {family} unicast neighbors {address} routes json"))
        return set(table.get("routes", {}))


class AgentProcess:
    """An agent in its own process and namespace, for the node that is called as its place or `node`."""

    def __init__(self, world: World, place: str, *, node: str = "", settle_s: float = 10.0) -> None:
        self._world, self.place, self.node, self._settle_s = world, place, node or place, settle_s
        self.run_dir = world.scratch / f"run-{place}"
        self.state = SpeakerState()
        self.log = world.scratch / f"{place}.log"
        self._sent = 0
        self.start()

    def start(self) -> None:
        script = str(Path(__file__).with_name("bgp_agent_process.py"))
        with open(self.log, "a") as log:
            self.process = self._world.start(
                self.place,
                *(sys.executable, script, self.node, str(self.run_dir), str(self._settle_s)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()

    def apply(self, *resources: Resource) -> None:
        """Give the agent a snapshot."""
        self._sent += 1
        path = self._world.scratch / f"{self.place}-{self._sent}.pickle"
        path.write_bytes(pickle.dumps(resources))
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()

    def session(self, address: str) -> SessionState:
        """The status of one session."""
        unknown = SessionState(peer=address, name="", as_number=0, state="unknown")
        return next((each for each in self.state.sessions if each.peer == address), unknown)

    def up(self, address: str) -> bool:
        return self.session(address).state == "Established"

    def exabgp(self) -> int:
        """The process id of its ExaBGP."""
        assert self.process.pid
        return int(self._world.run("pgrep", "-P", str(self.process.pid)).split()[0])

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.state = msgspec.json.decode(line, type=SpeakerState)


class RouteMonitor:
    """`ip monitor route` in a namespace, for BGP's own routes."""

    def __init__(self, world: World, place: str) -> None:
        self.lines: list[str] = []
        process = world.start(place, "ip", "-o", "monitor", "route", stdout=subprocess.PIPE)
        self._thread = threading.Thread(target=self._listen, args=(process,), daemon=True)
        self._thread.start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if "proto 201" in line or "proto bgp" in line or "proto muslin" in line:
                self.lines.append(line.strip())

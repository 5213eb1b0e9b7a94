"""Real routers, each in its own network namespace with its own run directory: what every kind can be asked and told.

    Router          start, stop, sessions(), routes(), reject(prefixes), accept()
    ├── Bird        here
    ├── Frr         lab.frr
    ├── Gobgp       lab.gobgp
    └── Kernel      here: forwards between its racks and speaks no BGP

A router exports all it knows to everyone (a node sees the other racks' subnets too), takes only prefixes inside
the lab's pools from nodes, and anything from other routers. It keeps what it refuses (an import table), so
`reject` and `accept` work at once and leave every session up, as a change of an import filter does on a real one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

from core.addr import Address, Network, contains, host_prefix
from core.errors import MuslinError, Unsupported
from lab import processes
from lab.processes import Process
from lab.wiring import Neighbour, RouterWiring
from linux import netns, sysctl

ROUTER_HOLD_S: Final = 9
"""Hold time between routers; keepalives every third of it."""

EVERYTHING: Final = (ip_network("0.0.0.0/0"), ip_network("::/0"))

READY_S: Final = 30.0
"""How long a router may take to answer, or to take a change: ages, because a lab may run on a slow machine."""


@dataclass(frozen=True, slots=True)
class Session:
    """A BGP session as the router sees it. `state` is in the router's own words; `Established` when up."""

    neighbour: str
    address: Address
    state: str

    @property
    def up(self) -> bool:
        """Whether routes are exchanged."""
        return self.state == "Established"


class Router(ABC):
    """One router. Methods run short commands and return when the router has taken them."""

    def __init__(self, wiring: RouterWiring, namespace: str, directory: Path) -> None:
        self.wiring = wiring
        self.namespace = namespace
        self.directory = directory
        self.rejected: tuple[Network, ...] = ()

    @classmethod
    @abstractmethod
    def require(cls) -> None:
        """Raise `Unsupported`, naming the package, when this machine lacks what it takes."""

    @abstractmethod
    def config(self) -> str:
        """The configuration it should have now, as text."""

    @abstractmethod
    def start(self) -> tuple[Process, ...]:
        """Start it; returns its processes once it can be asked things."""

    @abstractmethod
    def sessions(self) -> tuple[Session, ...]:
        """Its BGP sessions, by the order of the file."""

    @abstractmethod
    def routes(self) -> Mapping[Network, frozenset[Address]]:
        """What it learnt over BGP and uses: prefix to next hops."""

    @abstractmethod
    def reload(self) -> None:
        """Take what `rejected` says into the running router, sessions untouched."""

    def reject(self, prefixes: Sequence[Network] = ()) -> None:
        """Stop taking routes inside `prefixes` from nodes (none given: any route); others and sessions stay.

        Returns when the router has dropped what it had of them.
        """
        self._refuse(tuple(prefixes) or EVERYTHING)

    def accept(self) -> None:
        """Take everything inside the pools from nodes again."""
        self._refuse(())

    def _refuse(self, prefixes: tuple[Network, ...]) -> None:
        self.rejected = prefixes
        self.reload()
        self._await_refused()

    def pod_routes(self) -> Mapping[Network, frozenset[Address]]:
        """Those of `routes` inside the lab's pools."""
        pools = self.wiring.pools
        return {net: hops for net, hops in self.routes().items() if any(contains(pool, net) for pool in pools)}

    def _await_refused(self) -> None:
        """Wait until no route is left that came from a node and should be refused."""
        nodes = {each.address for each in self.wiring.neighbours if each.node}
        deadline = time.monotonic() + READY_S
        while left := [
            net
            for net, hops in self.pod_routes().items()
            if hops & nodes and any(contains(prefix, net) for prefix in self.rejected)
        ]:
            if time.monotonic() > deadline:
                raise MuslinError(f"router {self.wiring.name} still has {', '.join(map(str, left))} from its nodes")
            time.sleep(processes.POLL_S)


class Kernel(Router):
    """Nothing but forwarding, which every router's namespace does."""

    @classmethod
    def require(cls) -> None:
        """Nothing that the machine might lack."""

    def config(self) -> str:
        """Nothing to configure."""
        return ""

    def start(self) -> tuple[Process, ...]:
        """Nothing to start."""
        return ()

    def sessions(self) -> tuple[Session, ...]:
        """None, ever."""
        return ()

    def routes(self) -> Mapping[Network, frozenset[Address]]:
        """None, ever."""
        return {}

    def reload(self) -> None:
        """It speaks no BGP, so this is a mistake of the caller's."""
        raise Unsupported(f"router {self.wiring.name} is of kind kernel and speaks no BGP: use bird, frr or gobgp")


class Bird(Router):
    """BIRD 2."""

    @classmethod
    def require(cls) -> None:
        """`bird` and `birdc`."""
        if not (shutil.which("bird") and shutil.which("birdc")):
            raise Unsupported("a router of kind bird needs BIRD 2; install it: apt-get install bird2")

    def config(self) -> str:
        """bird.conf."""
        wiring = self.wiring
        versions = sorted({each.address.version for each in wiring.neighbours} or {4})
        parts = [
            f'log "{self.directory}/bird.log" {{ info, remote, warning, error, auth, fatal, bug }};',
            f"router id {wiring.router_id};",
            "protocol device { scan time 5; }",
            *(["protocol bfd {}"] if wiring.bfd else []),
            *(_BIRD_FAMILY.format(version=version) for version in versions),
            *(self._loopbacks(version) for version in versions),
            *(self._taken(version) for version in versions),
            *(self._session(each) for each in wiring.neighbours),
        ]
        return "\n".join(parts) + "\n"

    def _loopbacks(self, version: int) -> str:
        """The ways to nodes that are behind their loopbacks; the kernel has them from the lab."""
        far = [each for each in self.wiring.neighbours if each.via and each.address.version == version]
        routes = [f"route {host_prefix(each.address)} via {each.via};" for each in far]
        return f"protocol static {{ ipv{version}; {' '.join(routes)} }}" if routes else ""

    def _taken(self, version: int) -> str:
        """The function that says which routes of nodes are taken."""
        refused = [f"{net}+" for net in self.rejected if net.version == version]
        pools = [f"{net}+" for net in self.wiring.pools if net.version == version]
        lines = [f"\tif net ~ [ {', '.join(refused)} ] then return false;"] if refused else []
        lines.append(f"\treturn net ~ [ {', '.join(pools)} ];" if pools else "\treturn false;")
        return "\n".join([f"function taken{version}() {{", *lines, "}"])

    def _session(self, peer: Neighbour) -> str:
        version = peer.address.version
        hold = self.wiring.node_hold_time if peer.node else ROUTER_HOLD_S
        timers = f"\thold time {hold}; keepalive time {max(1, hold // 3)};\n" if hold else ""
        export = f"filter {{ bgp_path.delete({peer.as_number}); accept; }}" if peer.shared_as else "all"
        return (
            f"protocol bgp {_protocol(peer)} {{\n"
            f"\tlocal {peer.local} as {self.wiring.as_number};\n"
            f"\tneighbor {peer.address} as {peer.as_number};\n"
            "\tgraceful restart aware;\n\tconnect delay time 1; connect retry time 2; error wait time 1, 4;\n"
            f"{timers}{''.join(self._wanted(peer))}"
            f"\tipv{version} {{\n"
            "\t\timport table on;\n"
            f"\t\timport {f'where taken{version}()' if peer.node else 'all'};\n"
            f"{f'		next hop self ebgp;{chr(10)}' if peer.client else ''}"
            f"\t\texport {export};\n"
            "\t};\n}"
        )

    def _wanted(self, peer: Neighbour) -> Iterator[str]:
        """What only some sessions with nodes have."""
        bfd = self.wiring.bfd
        if peer.node and bfd:
            yield f"\tbfd {{ interval {bfd.interval} ms; multiplier {bfd.multiplier}; }};\n"
        if peer.node and self.wiring.password:
            yield f'\tpassword "{self.wiring.password}";\n'
        if peer.client:
            yield "\trr client;\n"
        if peer.via:
            yield "\tmultihop 2;\n"

    def start(self) -> tuple[Process, ...]:
        """Start `bird` and wait for its control socket."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "bird.conf").write_text(self.config())
        argv = ["bird", "-f", "-c", str(self.directory / "bird.conf"), "-s", self._control, "-P", self._pid]
        process = processes.start(argv, log=self.directory / "bird.out", namespace=self.namespace)
        await_ready(f"router {self.wiring.name} (bird)", self._answers, process, self.directory / "bird.out")
        return (process,)

    @property
    def _control(self) -> str:
        return str(self.directory / "bird.ctl")

    @property
    def _pid(self) -> str:
        return str(self.directory / "bird.pid")

    def _answers(self) -> bool:
        # the control socket is there before the configuration is read, so only an answer counts
        argv = ["birdc", "-s", self._control, "show", "status"]
        return Path(self._control).exists() and not subprocess.run(argv, capture_output=True, check=False).returncode

    def ask(self, command: str) -> str:
        """What birdc prints for a command."""
        argv = ["birdc", "-s", self._control, *command.split()]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
        if done.returncode:
            raise MuslinError(
                f"router {self.wiring.name}: birdc {command}: {done.stdout.strip()} {done.stderr.strip()}"
            )
        return done.stdout

    def sessions(self) -> tuple[Session, ...]:
        """From `show protocols`."""
        states = {}
        for line in self.ask("show protocols").splitlines():
            words = line.split()
            if len(words) >= 4 and words[1] == "BGP":
                states[words[0]] = words[5] if len(words) > 5 and words[3] != "down" else "Down"
        return tuple(
            Session(each.name, each.address, states.get(_protocol(each), "Down")) for each in self.wiring.neighbours
        )

    def routes(self) -> Mapping[Network, frozenset[Address]]:
        """From `show route export`: what it gives the kernel, with those of equal cost in one."""
        versions = sorted({each.address.version for each in self.wiring.neighbours} or {4})
        return parse_bird_routes("".join(self.ask(f"show route export kernel{version}") for version in versions))

    def reload(self) -> None:
        """Write the filter anew and `birdc configure`."""
        (self.directory / "bird.conf").write_text(self.config())
        answer = self.ask("configure")
        if "Reconfigured" not in answer and "Reconfiguration in progress" not in answer:
            raise MuslinError(f"router {self.wiring.name} refused its configuration: {answer.strip()}")


_BIRD_FAMILY: Final = """\
protocol direct direct{version} {{ ipv{version}; }}
protocol kernel kernel{version} {{
\tmerge paths on;
\tipv{version} {{ import none; export where source = RTS_BGP; }};
}}"""


def _protocol(peer: Neighbour) -> str:
    return f"{peer.name.replace('-', '_')}_v{peer.address.version}"


def parse_bird_routes(text: str) -> Mapping[Network, frozenset[Address]]:
    """Prefix to next hops, from what `show route` prints."""
    found: dict[Network, frozenset[Address]] = {}
    prefix: Network | None = None
    for line in text.splitlines():
        if head := re.match(r"([0-9a-f.:]+/\d+)\s", line):
            prefix = ip_network(head[1])
            found.setdefault(prefix, frozenset())
        if prefix is not None and (via := re.match(r"\s+via ([0-9a-f.:]+) on", line)):
            found[prefix] |= {ip_address(via[1])}
    return found


def await_ready(what: str, ready: Callable[[], bool], process: Process, log: Path) -> None:
    """Wait until `ready()`; if the process dies or takes longer than READY_S, raise with the end of its log."""
    deadline = time.monotonic() + READY_S
    while not ready():
        if not process.alive() or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
            raise MuslinError(f"{what} {'does not answer' if process.alive() else 'died as it started'}:\n{tail}")
        time.sleep(processes.POLL_S)


_FORWARDING: Final = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/fib_multipath_hash_policy": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}


def forward(namespace: str) -> None:
    """Make a namespace forward packets of both families, over several paths by flow, and answer from any address."""
    with netns.inside(namespace):
        for key, value in _FORWARDING.items():
            sysctl.write(key, value)

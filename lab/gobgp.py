"""GoBGP: gobgpd in a namespace, and `lab.gobgp_fib` beside it, which puts its routes into the kernel.

GoBGP leaves the kernel to FRR's zebra, and of Debian's two the one cannot read the other's messages: gobgpd 3.10 ends
with a panic as soon as it meets zebra 8.4 (https://github.com/osrg/gobgp/issues/2681).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from core.addr import Address, Network
from core.errors import MuslinError, Unsupported
from lab import ip, processes
from lab.gobgp_fib import next_hops
from lab.processes import Process
from lab.routers import ROUTER_HOLD_S, Router, Session, await_ready
from lab.wiring import Neighbour

LONGEST: Final = {4: 32, 6: 128}

NOWHERE: Final = {4: "0.0.0.0", 6: "::"}
"""The next hop of what a router has itself."""

STATES: Final = ("Unknown", "Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established")
"""RFC 4271's, as gobgp numbers them in its JSON."""


class Gobgp(Router):
    """GoBGP. What nodes say passes the policy `nodes`, which `reject` and `accept` change."""

    @classmethod
    def require(cls) -> None:
        """`gobgpd` and `gobgp`."""
        if not (shutil.which("gobgpd") and shutil.which("gobgp")):
            raise Unsupported("a router of kind gobgp needs GoBGP; install it: apt-get install gobgpd")

    def config(self) -> str:
        """gobgpd.toml."""
        wiring = self.wiring
        lines = [
            "[global.config]",
            f"  as = {wiring.as_number}",
            f'  router-id = "{wiring.router_id}"',
            "[global.use-multiple-paths.config]",
            "  enabled = true",
            "[global.apply-policy.config]",
            '  import-policy-list = ["nodes"]',
            '  default-import-policy = "accept-route"',
            '  export-policy-list = ["clients"]',
            '  default-export-policy = "accept-route"',
        ]
        for peer in wiring.neighbours:
            lines += self._session(peer)
        for version in sorted({each.address.version for each in wiring.neighbours}):
            lines += self._sets(version)
        return "\n".join([*lines, *self._policies(), ""])

    def _session(self, peer: Neighbour) -> Iterator[str]:
        hold = (self.wiring.node_hold_time if peer.node else ROUTER_HOLD_S) or 90
        yield "[[neighbors]]"
        yield "  [neighbors.config]"
        yield f'    neighbor-address = "{peer.address}"'
        yield f"    peer-as = {peer.as_number}"
        if peer.node and self.wiring.password:
            yield f'    auth-password = "{self.wiring.password}"'
        yield "  [neighbors.transport.config]"
        yield f'    local-address = "{peer.local}"'
        yield "  [neighbors.timers.config]"
        yield f"    hold-time = {hold}"
        yield f"    keepalive-interval = {max(1, hold // 3)}"
        yield "    connect-retry = 5"
        yield "    idle-hold-time-after-reset = 1"
        yield "  [neighbors.graceful-restart.config]"
        yield "    enabled = true"
        yield "    restart-time = 120"
        if peer.client:
            yield "  [neighbors.route-reflector.config]"
            yield "    route-reflector-client = true"
            yield f'    route-reflector-cluster-id = "{self.wiring.router_id}"'
        if peer.shared_as:
            yield "  [neighbors.as-path-options.config]"
            yield "    replace-peer-as = true"
        yield "  [[neighbors.afi-safis]]"
        yield "    [neighbors.afi-safis.config]"
        yield f'      afi-safi-name = "ipv{peer.address.version}-unicast"'
        yield "    [neighbors.afi-safis.mp-graceful-restart.config]"
        yield "      enabled = true"

    def _sets(self, version: int) -> Iterator[str]:
        """Who is a node, which of them are clients, which prefixes are taken and which are refused."""
        nodes = [each for each in self.wiring.neighbours if each.node and each.address.version == version]
        for name, members in (("nodes", nodes), ("clients", [each for each in nodes if each.client])):
            yield "[[defined-sets.neighbor-sets]]"
            yield f'  neighbor-set-name = "{name}{version}"'
            yield f"  neighbor-info-list = {json.dumps([str(each.address) for each in members])}"
        for name, prefixes in (("taken", self.wiring.pools), ("refused", self.rejected)):
            yield "[[defined-sets.prefix-sets]]"
            yield f'  prefix-set-name = "{name}{version}"'
            for net in (each for each in prefixes if each.version == version):
                yield "  [[defined-sets.prefix-sets.prefix-list]]"
                yield f'    ip-prefix = "{net}"'
                yield f'    masklength-range = "{net.prefixlen}..{LONGEST[version]}"'

    def _policies(self) -> Iterator[str]:
        versions = sorted({each.address.version for each in self.wiring.neighbours if each.node})
        yield from ("[[policy-definitions]]", '  name = "nodes"')
        for version in versions:
            refused = any(net.version == version for net in self.rejected)
            for name, option in (("taken", "invert"), *([("refused", "any")] if refused else [])):
                yield from _statement(f"{name}{version}", "neighbor-set", f"nodes{version}")
                yield "    [policy-definitions.statements.conditions.match-prefix-set]"
                yield f'      prefix-set = "{name}{version}"'
                yield f'      match-set-options = "{option}"'
                yield "    [policy-definitions.statements.actions]"
                yield '      route-disposition = "reject-route"'
        yield from ("[[policy-definitions]]", '  name = "clients"')
        for version in versions:
            if any(each.client and each.address.version == version for each in self.wiring.neighbours):
                yield from _statement(f"clients{version}", "neighbor-set", f"clients{version}")
                yield "    [policy-definitions.statements.conditions.bgp-conditions]"
                yield '      route-type = "external"'
                yield "    [policy-definitions.statements.actions.bgp-actions]"
                yield '      set-next-hop = "self"'

    def start(self) -> tuple[Process, ...]:
        """Start gobgpd, tell it of the subnets that are connected, then start what serves the kernel."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "gobgpd.toml").write_text(self.config())
        log = self.directory / "gobgpd.log"
        argv = ["gobgpd", "-f", str(self.directory / "gobgpd.toml"), "--api-hosts", self._target]
        daemon = processes.start([*argv, "--pprof-disable", "-p"], log=log, namespace=self.namespace)
        (self.directory / "gobgpd.pid").write_text(str(daemon.pid))
        await_ready(f"router {self.wiring.name} (gobgpd)", self._answers, daemon, log)
        for version in (4, 6):
            connected = ip.routes(self.namespace, version, "proto", "kernel")
            for network in (net for net in connected if not net.is_link_local):
                self.ask("global", "rib", "-a", f"ipv{version}", "add", str(network), "nexthop", NOWHERE[version])
        argv = [sys.executable, "-m", "lab.gobgp_fib", self._target]
        home = Path(__file__).parents[1]
        fib = processes.start(argv, log=self.directory / "fib.log", namespace=self.namespace, cwd=home)
        return (daemon, fib)

    @property
    def _target(self) -> str:
        return f"unix://{self.directory / 'gobgpd.sock'}"

    def _answers(self) -> bool:
        return (self.directory / "gobgpd.sock").exists() and not self._run("global").returncode

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = ["gobgp", "--target", self._target, *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)

    def ask(self, *words: str) -> str:
        """What gobgp prints for a command."""
        done = self._run(*words)
        if done.returncode:
            said = f"{done.stdout.strip()} {done.stderr.strip()}"
            raise MuslinError(f"router {self.wiring.name}: gobgp {' '.join(words)}: {said}")
        return done.stdout

    def sessions(self) -> tuple[Session, ...]:
        """From `gobgp neighbor`."""
        peers: Sequence[Mapping[str, Any]] = json.loads(self.ask("neighbor", "-j"))
        states = {each["conf"]["neighbor_address"]: each["state"].get("session_state", 0) for each in peers}
        return tuple(
            Session(each.name, each.address, STATES[states.get(str(each.address), 0)])
            for each in self.wiring.neighbours
        )

    def routes(self) -> Mapping[Network, frozenset[Address]]:
        """From `gobgp global rib`: the best paths of neighbours, and those as good as they."""
        found: dict[Network, frozenset[Address]] = {}
        for version in (4, 6):
            table: Mapping[str, Any] = json.loads(self.ask("global", "rib", "-a", f"ipv{version}", "-j") or "{}")
            for prefix, paths in table.items():
                hops = next_hops(_as_good_as_the_best(paths))
                if hops:
                    found[ip_network(prefix)] = frozenset(hops)
        return found

    def reload(self) -> None:
        """Write the policy anew; at SIGHUP gobgpd reads it and looks at what everybody sent again."""
        (self.directory / "gobgpd.toml").write_text(self.config())
        for daemon in processes.known([int((self.directory / "gobgpd.pid").read_text())]):
            daemon.signal(signal.SIGHUP)


def _statement(name: str, kind: str, members: str) -> Iterator[str]:
    yield "  [[policy-definitions.statements]]"
    yield f'    name = "{name}"'
    yield f"    [policy-definitions.statements.conditions.match-{kind}]"
    yield f'      {kind} = "{members}"'


def _as_good_as_the_best(paths: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The paths of one prefix that gobgpd uses together: it marks only the first as best."""
    best = next((path for path in paths if path.get("best")), None)
    return [path for path in paths if best is not None and _worth(path) == _worth(best)]


def _worth(path: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Local preference, length of the AS path, origin and MED."""
    by_type = {each["type"]: each for each in path["attrs"]}
    hops = sum(segment["num"] for segment in by_type.get(2, {}).get("as_paths", ()))
    return (
        by_type.get(5, {}).get("value", 100),
        hops,
        by_type.get(1, {}).get("value", 0),
        by_type.get(4, {}).get("metric", 0),
    )

"""FRR: zebra and bgpd run by hand in a namespace, with run directories of their own and without watchfrr."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final

from core.addr import Address, Network
from core.errors import MuslinError, Unsupported
from lab import processes
from lab.processes import Process
from lab.routers import ROUTER_HOLD_S, Router, Session, await_ready
from lab.wiring import Neighbour

HOME: Final = Path("/usr/lib/frr")
ANY: Final = {4: "0.0.0.0/0", 6: "::/0"}
KEYWORD: Final = {4: "ip", 6: "ipv6"}


class Frr(Router):
    """FRR's zebra and bgpd. Node routes pass the prefix lists TAKEN4 and TAKEN6, which `reject` and `accept` change."""

    @classmethod
    def require(cls) -> None:
        """`zebra`, `bgpd` and `vtysh`."""
        if not ((HOME / "zebra").exists() and (HOME / "bgpd").exists() and shutil.which("vtysh")):
            raise Unsupported("a router of kind frr needs FRR; install it: apt-get install frr")

    def config(self) -> str:
        """bgpd.conf."""
        wiring = self.wiring
        versions = sorted({each.address.version for each in wiring.neighbours} or {4})
        lines = [f"hostname {wiring.name}", "service integrated-vtysh-config"]
        for version in versions:
            lines += self._taken(version)
            match = f" match {KEYWORD[version]} address prefix-list TAKEN{version}"
            lines += [f"route-map NODES{version} permit 10", match, "exit"]
        lines += [
            f"router bgp {wiring.as_number}",
            f" bgp router-id {wiring.router_id}",
            " no bgp default ipv4-unicast",
            " no bgp ebgp-requires-policy",
            " no bgp network import-check",
            " bgp bestpath as-path multipath-relax",
        ]
        for peer in wiring.neighbours:
            lines += self._session(peer)
        for version in versions:
            lines += self._family(version)
        return "\n".join([*lines, "exit", ""])

    def _taken(self, version: int) -> list[str]:
        longest = 32 if version == 4 else 128
        refused = [(net, "deny") for net in self.rejected if net.version == version]
        pools = [(net, "permit") for net in self.wiring.pools if net.version == version]
        lines = [
            f"{KEYWORD[version]} prefix-list TAKEN{version} seq {seq} {action} {net} le {longest}"
            for seq, (net, action) in enumerate([*refused, *pools], 1)
        ]
        return [*lines, f"{KEYWORD[version]} prefix-list TAKEN{version} seq 9999 deny {ANY[version]} le {longest}"]

    def _session(self, peer: Neighbour) -> list[str]:
        hold = self.wiring.node_hold_time if peer.node else ROUTER_HOLD_S
        timers = [f" neighbor {peer.address} timers {max(1, hold // 3)} {hold}"] if hold else []
        return [
            f" neighbor {peer.address} remote-as {peer.as_number}",
            f" neighbor {peer.address} description {peer.name}",
            f" neighbor {peer.address} advertisement-interval 0",
            f" neighbor {peer.address} timers connect 2",
            *timers,
            *(self._wanted(peer) if peer.node else ()),
        ]

    def _wanted(self, peer: Neighbour) -> Iterator[str]:
        """What only some sessions with nodes have."""
        bfd = self.wiring.bfd
        if bfd:
            yield f" neighbor {peer.address} bfd {bfd.multiplier} {bfd.interval} {bfd.interval}"
        if self.wiring.password:
            yield f" neighbor {peer.address} password {self.wiring.password}"
        if peer.via:
            yield f" neighbor {peer.address} update-source {peer.local}"
        if peer.via and not peer.client:
            yield f" neighbor {peer.address} ebgp-multihop 2"

    def _family(self, version: int) -> list[str]:
        lines = [f" address-family ipv{version} unicast", "  redistribute connected", "  maximum-paths 8"]
        if any(peer.via for peer in self.wiring.neighbours):
            lines.append("  redistribute kernel")  # the ways to nodes behind their loopbacks
        for peer in self.wiring.neighbours:
            if peer.address.version == version:
                lines += [
                    f"  neighbor {peer.address} activate",
                    f"  neighbor {peer.address} soft-reconfiguration inbound",
                    *([f"  neighbor {peer.address} route-map NODES{version} in"] if peer.node else []),
                    *([f"  neighbor {peer.address} as-override"] if peer.shared_as else []),
                    *([f"  neighbor {peer.address} route-reflector-client"] if peer.client else []),
                    *([f"  neighbor {peer.address} next-hop-self"] if peer.client else []),
                ]
        return [*lines, " exit-address-family"]

    def start(self) -> tuple[Process, ...]:
        """Start zebra, bfdd if there is BFD, then bgpd, and wait for the sockets of each."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "zebra.conf").write_text(f"hostname {self.wiring.name}\n")
        (self.directory / "bgpd.conf").write_text(self.config())
        for name in ("bfdd", "vtysh"):
            (self.directory / f"{name}.conf").write_text("")
        for path in (self.directory, *self.directory.iterdir()):
            shutil.chown(path, "frr", "frr")
        zebra = self._daemon("zebra", "zserv.api")
        bfdd = (
            [self._daemon("bfdd", "bfdd.vty", "--bfdctl", str(self.directory / "bfdd.sock"))] if self.wiring.bfd else []
        )
        return (zebra, *bfdd, self._daemon("bgpd", "bgpd.vty", "-p", "179"))

    def _daemon(self, name: str, socket: str, *options: str) -> Process:
        here = self.directory
        argv = [str(HOME / name), "-f", str(here / f"{name}.conf"), "-i", str(here / f"{name}.pid")]
        argv += ["-z", str(here / "zserv.api"), "--vty_socket", str(here), "-P", "0", "-u", "frr", "-g", "frr"]
        argv += ["--log", f"file:{here / name}.log", *options]
        process = processes.start(argv, log=here / f"{name}.out", namespace=self.namespace)
        sockets = (here / socket, here / f"{name}.vty")
        what = f"router {self.wiring.name} ({name})"
        await_ready(what, lambda: all(path.exists() for path in sockets), process, here / f"{name}.out")
        return process

    def ask(self, *commands: str) -> str:
        """What vtysh prints for commands given one after the other."""
        argv = ["vtysh", "--vty_socket", str(self.directory), "--config_dir", str(self.directory)]
        for command in commands:
            argv += ["-c", command]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
        if done.returncode or "Unknown command" in done.stdout:
            said = f"{done.stdout.strip()} {done.stderr.strip()}"
            raise MuslinError(f"router {self.wiring.name}: vtysh {'; '.join(commands)}: {said}")
        return done.stdout

    def sessions(self) -> tuple[Session, ...]:
        """From `show bgp summary`."""
        summary: Mapping[str, Any] = json.loads(self.ask("show bgp summary json"))
        states = {
            address: peer["state"]
            for family in summary.values()
            if isinstance(family, dict)
            for address, peer in family.get("peers", {}).items()
        }
        return tuple(
            Session(each.name, each.address, states.get(str(each.address), "Down")) for each in self.wiring.neighbours
        )

    def routes(self) -> Mapping[Network, frozenset[Address]]:
        """From zebra's `show route bgp`, the selected ones."""
        found: dict[Network, frozenset[Address]] = {}
        for version in sorted({each.address.version for each in self.wiring.neighbours}):
            table: Mapping[str, Any] = json.loads(self.ask(f"show {KEYWORD[version]} route bgp json"))
            for prefix, entries in table.items():
                hops = [hop for entry in entries if entry.get("selected") for hop in entry["nexthops"]]
                found[ip_network(prefix)] = frozenset(ip_address(hop["ip"]) for hop in hops if hop.get("ip"))
        return found

    def reload(self) -> None:
        """Change the prefix lists and look at what nodes sent again."""
        nodes = [each for each in self.wiring.neighbours if each.node]
        commands = ["configure terminal"]
        for version in sorted({each.address.version for each in nodes}):
            commands += [f"no {KEYWORD[version]} prefix-list TAKEN{version}", *self._taken(version)]
        again = [f"clear bgp ipv{each.address.version} unicast {each.address} soft in" for each in nodes]
        self.ask(*commands, "end", *again)

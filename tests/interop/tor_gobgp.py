"""GoBGP at the top of the rack. It has no BFD, and writes no kernel routes of its own."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from bgp_world import World, until

from tests.interop.tor import NODE4, Heard, Peering, Said, Tor, View

ORIGINS = ("IGP", "EGP", "Incomplete")
STATES = ("unknown", "idle", "connect", "active", "opensent", "openconfirm", "established")

IDLE_S, SILENT_S = 0.3, 2.0


class GobgpTor(Tor):
    """Configured by its file alone: other peerings are another process, which is there within a tenth of a second."""

    kind = "gobgp"

    def __init__(self, world: World, place: str, **options: int | str) -> None:
        super().__init__(world, place, **options)  # type: ignore[arg-type]
        self._conf = world.scratch / f"{place}.json"
        self._process: subprocess.Popen[str] | None = None
        self._started = 0.0

    def start(self) -> None:
        self._conf.write_text(json.dumps(self._body()))
        log = self.world.scratch / f"{self.place}.log"
        argv = ("gobgpd", "-t", "json", "-f", str(self._conf), "--pprof-disable", "--api-hosts", "127.0.0.1:50051")
        again = ("--graceful-restart",) if self._process else ()
        # its announcements come one by one, and its End-of-RIB must not come before them
        hold = "add table inet hold; add chain inet hold in { type filter hook input priority 0; };"
        self._nft(f"{hold} add rule inet hold in tcp dport 179 drop; add rule inet hold in tcp sport 179 drop")
        with log.open("a") as output:
            self._process = self.world.start(self.place, *argv, *again, stdout=output, stderr=output)
        until("GoBGP answers", self._answers)
        self._started = time.monotonic()
        for prefix, said in self.announced.items():
            self.originate(prefix, said)
        self._nft("delete table inet hold")

    def _nft(self, commands: str) -> None:
        self.world.run(*self.world.command(self.place, "nft", commands))

    def _answers(self) -> bool:
        asked = self.world.command(self.place, "gobgp", "global")
        return subprocess.run(asked, capture_output=True, check=False, timeout=20).returncode == 0

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def reconfigure(self) -> None:
        self.kill()
        self._process = None
        self.start()

    def prompt(self) -> bool:
        """A session that was lost is refused for five seconds, and an OPEN that does not come, as when it is TTL
        security that drops it, is awaited for four minutes. A new process knows of neither."""
        age = time.monotonic() - self._started
        states = [] if age < IDLE_S else [self.session(each.node).state for each in self.peerings]
        stuck = "idle" in states or (age > SILENT_S and any(each != "established" for each in states))
        if stuck:
            self.reconfigure()
        return stuck

    def originate(self, prefix: str, said: Said) -> None:
        words = ["origin", "igp"]
        words += ["aspath", " ".join(map(str, said.path))] if said.path else []
        words += ["med", str(said.med)] if said.med is not None else []
        words += ["local-pref", str(said.local_pref)] if said.local_pref is not None else []
        words += ["community", ",".join(said.standard)] if said.standard else []
        words += ["large-community", ",".join(said.large)] if said.large else []
        self._ask("global", "rib", "add", "-a", _family(prefix), prefix, *words)

    def retract(self, prefix: str, said: Said) -> None:
        self._ask("global", "rib", "del", "-a", _family(prefix), prefix)

    def clear(self, node: str = NODE4) -> None:
        self._ask("neighbor", node, "reset")

    def _ask(self, *words: str) -> str:
        return self.world.run(*self.world.command(self.place, "gobgp", *words))

    def _body(self) -> dict[str, Any]:
        world = {"config": {"as": self.as_number, "router-id": self.router_id, "port": 179}}
        return {"global": world, "neighbors": [self._neighbor(each) for each in self.peerings]}

    def _neighbor(self, peering: Peering) -> dict[str, Any]:
        transport = {
            "local-address": peering.local,
            "remote-port": peering.node_port,
            "passive-mode": peering.passive,
        }
        family: dict[str, Any] = {
            "config": {"afi-safi-name": f"ipv{peering.version}-unicast"},
            "mp-graceful-restart": {"config": {"enabled": bool(peering.restart_s)}},
        }
        if peering.long_lived_s:
            times = {"enabled": True, "restart-time": peering.long_lived_s}
            family["long-lived-graceful-restart"] = {"config": times}
        if peering.most_in:
            family["prefix-limit"] = {"config": {"max-prefixes": peering.most_in}}
        restart = {"enabled": bool(peering.restart_s), "restart-time": peering.restart_s}
        restart["long-lived-enabled"] = bool(peering.long_lived_s)
        timers = {"hold-time": peering.hold_s, "connect-retry": 1, "idle-hold-time-after-reset": 1}
        neighbor: dict[str, Any] = {
            "config": {"neighbor-address": peering.node, "peer-as": peering.node_as, "auth-password": peering.password},
            "timers": {"config": timers},
            "transport": {"config": transport},
            "graceful-restart": {"config": restart},
            "afi-safis": [family],
        }
        if peering.ttl_security:
            neighbor["ttl-security"] = {"config": {"enabled": True, "ttl-min": 255}}
        if peering.multihop:
            neighbor["ebgp-multihop"] = {"config": {"enabled": True, "multihop-ttl": 2}}
        if peering.client:
            reflects = {"route-reflector-client": True, "route-reflector-cluster-id": self.router_id}
            neighbor["route-reflector"] = {"config": reflects}
        return neighbor

    def session(self, node: str = NODE4) -> View:
        said = json.loads(self._ask("neighbor", node, "-j"))
        state, timers = said["state"], said["timers"]
        name = STATES[state.get("session_state", 0)]
        capabilities = json.dumps(state.get("remote_cap", []))
        return View(
            state=name,
            up=name == "established",
            node_as=said["conf"]["peer_asn"],
            local_as=said["conf"].get("local_asn", self.as_number),
            hold_s=int(timers["state"].get("negotiated_hold_time", 0)),
            restart_s=_restart(state.get("remote_cap", [])),
            error="",
            capabilities=capabilities,
        )

    def heard(self, node: str = NODE4) -> Mapping[str, Heard]:
        table = json.loads(self._ask("global", "rib", "-a", _family(node), "-j") or "{}")
        told = ((prefix, path) for prefix, paths in table.items() for path in paths)
        return {prefix: _heard(path) for prefix, path in told if path.get("neighbor-ip") == node}


def _family(prefix: str) -> str:
    return "ipv6" if ":" in prefix else "ipv4"


def _restart(capabilities: Iterable[Mapping[str, str]]) -> int:
    """The node's restart time, from field 2 of a protobuf that field 1, one byte of flags, may come before."""
    for each in capabilities:
        if each["type_url"].endswith(".GracefulRestartCapability"):
            packed = base64.b64decode(each["value"])
            number = packed[packed.index(0x10) + 1 :]
            return number[0] & 0x7F | (number[1] << 7 if number[0] & 0x80 else 0)
    return 0


def _heard(path: Mapping[str, Any]) -> Heard:
    """From GoBGP's attributes, by their type codes (RFC 4271, 1997, 4456, 4760, 8092)."""
    by_type = {each["type"]: each for each in path["attrs"]}
    segments = by_type.get(2, {}).get("as_paths", [])
    standard = [f"{each >> 16}:{each & 0xFFFF}" for each in by_type.get(8, {}).get("communities", [])]
    large = [
        f"{each['ASN']}:{each['LocalData1']}:{each['LocalData2']}" for each in by_type.get(32, {}).get("value", [])
    ]
    next_hop = by_type.get(3, by_type.get(14, {})).get("nexthop", "")
    return Heard(
        next_hop=str(ip_address(next_hop)),
        path=tuple(_flat(segment["asns"] for segment in segments)),
        origin=ORIGINS[by_type[1]["value"]],
        communities=frozenset([*standard, *large]),
        med=by_type[4]["metric"] if 4 in by_type else None,
        local_pref=by_type[5]["value"] if 5 in by_type else None,
        originator=by_type.get(9, {}).get("value", ""),
        clusters=tuple(by_type.get(10, {}).get("value", ())),
        stale=bool(path.get("stale")),
    )


def _flat(numbers: Iterable[Iterable[int]]) -> list[int]:
    return [number for each in numbers for number in each]

"""FRR at the top of the rack: zebra, bgpd and, where it is asked for, bfdd."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from bgp_world import Frr, World

from tests.interop.tor import NODE4, Heard, Peering, Said, Tor, View

WELL_KNOWN = {"graceful-shutdown": "65535:0", "no-export": "65535:65281"}


class FrrTor(Tor):
    """Configured through vtysh: other peerings replace its `router bgp` whole, announcements touch nothing else."""

    kind = "frr"

    def __init__(self, world: World, place: str, **options: int | str) -> None:
        super().__init__(world, place, **options)  # type: ignore[arg-type]
        self._frr: Frr | None = None
        self._configured = self.as_number

    def start(self) -> None:
        if self._frr is None:
            self._frr = Frr(self.world, self.place, "\n".join(self._body()), daemons=("zebra", "bfdd", "bgpd"))
        else:
            self._frr.write("bgpd", "\n".join([*self._body(), *self._announcements()]))
            self._frr.start("bgpd")
        self._configured = self.as_number

    def kill(self) -> None:
        assert self._frr is not None
        self._frr.kill("bgpd")

    def reconfigure(self) -> None:
        self._ask("configure terminal", f"no router bgp {self._configured}", *self._body())
        self._configured = self.as_number

    def originate(self, prefix: str, said: Said) -> None:
        self._ask("configure terminal", *self._announcement(prefix, said))

    def retract(self, prefix: str, said: Said) -> None:
        family = f"address-family ipv{6 if ':' in prefix else 4} unicast"
        name = _map(prefix)
        router = f"router bgp {self._configured}"
        self._ask("configure terminal", router, family, f"no network {prefix}", "exit", "exit", f"no route-map {name}")

    def clear(self, node: str = NODE4) -> None:
        self._ask(f"clear bgp {node}")

    def _ask(self, *commands: str) -> str:
        assert self._frr is not None
        return self._frr.ask(*commands)

    def _body(self) -> list[str]:
        restart = max((each.restart_s for each in self.peerings), default=0)
        long_lived = max((each.long_lived_s for each in self.peerings), default=0)
        return [
            f"router bgp {self.as_number}",
            f"bgp router-id {self.router_id}",
            "no bgp default ipv4-unicast",
            "no bgp ebgp-requires-policy",
            "no bgp network import-check",
            *(
                [f"bgp graceful-restart restart-time {restart}", "bgp graceful-restart preserve-fw-state"]
                if restart
                else []
            ),
            *(["bgp graceful-restart"] if restart else ["bgp graceful-restart-disable"]),
            *([f"bgp long-lived-graceful-restart stale-time {long_lived}"] if long_lived else []),
            *(line for each in self.peerings for line in _session(each)),
            *(line for each in self.peerings for line in _family(each)),
            *(f"no neighbor {each.node} shutdown" for each in self.peerings),
            "exit",
        ]

    def _announcements(self) -> list[str]:
        return [line for prefix, said in self.announced.items() for line in self._announcement(prefix, said)]

    def _announcement(self, prefix: str, said: Said) -> list[str]:
        name = _map(prefix)
        settings = [
            f"set as-path prepend {' '.join(map(str, said.path))}" if said.path else "",
            f"set community {' '.join(said.standard)}" if said.standard else "",
            f"set large-community {' '.join(said.large)}" if said.large else "",
            f"set metric {said.med}" if said.med is not None else "",
            f"set local-preference {said.local_pref}" if said.local_pref is not None else "",
        ]
        version = 6 if ":" in prefix else 4
        return [
            f"route-map {name} permit 10",
            *filter(None, settings),
            "exit",
            f"router bgp {self.as_number}",
            f"address-family ipv{version} unicast",
            f"network {prefix} route-map {name}",
            "exit-address-family",
            "exit",
        ]

    def session(self, node: str = NODE4) -> View:
        said = json.loads(self._ask(f"show bgp neighbors {node} json")).get(node, {})
        state = said.get("bgpState", "")
        reasons = (said.get(key, "") for key in ("lastNotificationReason", "lastResetDueTo"))
        return View(
            state=state,
            up=state == "Established",
            node_as=said.get("remoteAs", 0),
            local_as=said.get("localAs", 0),
            hold_s=said.get("bgpTimerHoldTimeMsecs", 0) // 1000,
            restart_s=_restart(said),
            error="; ".join(filter(None, reasons)),
            capabilities=json.dumps(said.get("neighborCapabilities", {})),
        )

    def watched(self, node: str = NODE4) -> str:
        """How BFD stands with a node."""
        peers = json.loads(self._ask("show bfd peers json"))
        return next((str(each["status"]) for each in peers if each["peer"] == node), "").lower()

    def silence(self) -> None:
        assert self._frr is not None
        self._frr.signal("bfdd", signal.SIGSTOP)

    def wake(self) -> None:
        assert self._frr is not None
        self._frr.signal("bfdd", signal.SIGCONT)

    def heard(self, node: str = NODE4) -> Mapping[str, Heard]:
        family = f"ipv{6 if ':' in node else 4} unicast"
        known = json.loads(self._ask(f"show bgp {family} neighbors {node} routes json")).get("routes", {})
        if not known:
            return {}
        text = self._ask(*(f"show bgp {family} {prefix} json" for prefix in known))
        return {table["prefix"]: heard for table in _each(text) if (heard := _heard(table.get("paths", []), node))}


def _session(peering: Peering) -> list[str]:
    node = peering.node
    keepalive = max(1, peering.hold_s // 3)
    lines = [
        f"neighbor {node} remote-as {peering.node_as}",
        f"neighbor {node} shutdown",  # it takes line by line, and would open before it has come to the family
        f"neighbor {node} update-source {peering.local}",
        f"neighbor {node} timers {keepalive} {peering.hold_s}",
        f"neighbor {node} timers connect 1",
        f"neighbor {node} advertisement-interval 0",
    ]
    lines += [f"neighbor {node} port {peering.node_port}"] if peering.node_port != 179 else []
    lines += [f"neighbor {node} password {peering.password}"] if peering.password else []
    lines += [f"neighbor {node} ttl-security hops 1"] if peering.ttl_security else []
    lines += [f"neighbor {node} passive"] if peering.passive else []
    lines += [f"neighbor {node} ebgp-multihop 2"] if peering.multihop else []
    lines += [f"neighbor {node} bfd", f"neighbor {node} bfd 3 300 300"] if peering.bfd else []
    return lines


def _family(peering: Peering) -> list[str]:
    node = peering.node
    limit = f"neighbor {node} maximum-prefix {peering.most_in} restart 1" if peering.most_in else ""
    lines = [
        f"address-family ipv{peering.version} unicast",
        f"neighbor {node} activate",
        f"neighbor {node} soft-reconfiguration inbound",
        f"neighbor {node} route-reflector-client" if peering.client else "",
        limit,
        "exit-address-family",
    ]
    return [line for line in lines if line]


def _each(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects that stand one after the other."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        found, end = decoder.raw_decode(text)
        yield found
        text = text[end:].strip()


def _map(prefix: str) -> str:
    return "M" + re.sub(r"[.:/]", "-", prefix)


def _restart(said: Mapping[str, Any]) -> int:
    """What the node asked for, in seconds; 0 when it did not."""
    timers = said.get("gracefulRestartInfo", {}).get("timers", {})
    return int(timers.get("receivedRestartTimer", 0))


def _heard(paths: Any, node: str) -> Heard | None:
    """The path that `node` told, among all to a prefix."""
    path = next((each for each in paths if each.get("peer", {}).get("peerId") == node), None)
    if path is None:
        return None
    wide = (hop["ip"] for hop in path.get("nexthops", []) if hop.get("scope", "global") == "global")
    words = f"{path.get('community', {}).get('string', '')} {path.get('largeCommunity', {}).get('string', '')}".split()
    return Heard(
        next_hop=next(wide, ""),
        path=tuple(int(word) for word in path["aspath"]["string"].split() if word.isdigit()),
        origin=path["origin"],
        communities=frozenset(WELL_KNOWN.get(word, word) for word in words),
        med=path.get("metric"),
        local_pref=path.get("locPrf"),
        originator=path.get("originatorId", ""),
        clusters=tuple(path.get("clusterList", {}).get("list", ())),
        stale=bool(path.get("stale")),
    )

"""BIRD 2 at the top of the rack."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from bgp_world import Bird, World

from tests.interop.tor import NODE4, Heard, Peering, Said, Tor, View

FAMILY = """
protocol direct d{version} {{ ipv{version}; interface "lo"; }}
protocol kernel k{version} {{
  persist; graceful restart on; scan time 1;
  ipv{version} {{ import none; export where source = RTS_BGP; }};
}}
protocol static s{version} {{ ipv{version}; {routes} }}
"""


class BirdTor(Tor):
    """Configured by its file and `birdc configure`: sessions that stay the same stay up."""

    kind = "bird"

    def __init__(self, world: World, place: str, **options: int | str) -> None:
        super().__init__(world, place, **options)  # type: ignore[arg-type]
        self._bird = Bird(world, place, self.router_id)

    def start(self) -> None:
        self._bird.start(self._body(), "-R")
        self._bird.ask("show", "status")

    def kill(self) -> None:
        assert self._bird.process is not None
        self._bird.process.kill()
        self._bird.process.wait()
        self._bird.control.unlink()

    def reconfigure(self) -> None:
        self._bird.configure(self._body())

    def originate(self, prefix: str, said: Said) -> None:
        self.reconfigure()

    def retract(self, prefix: str, said: Said) -> None:
        self.reconfigure()

    def clear(self, node: str = NODE4) -> None:
        self._bird.ask("restart", _name(node))

    def _body(self) -> str:
        families = [FAMILY.format(version=each, routes=self._routes(each)) for each in (4, 6)]
        bfd = 'protocol bfd { interface "*" { interval 300 ms; multiplier 3; }; }\n'
        watched = bfd if any(each.bfd for each in self.peerings) else ""
        return "".join([*families, watched, *map(self._session, self.peerings)])

    def _routes(self, version: int) -> str:
        return "\n".join(
            f"  route {prefix} blackhole {{ {_saying(said)} }};"
            for prefix, said in self.announced.items()
            if (":" in prefix) == (version == 6)
        )

    def _session(self, peering: Peering) -> str:
        lines = [
            f"local {peering.local} as {self.as_number}",
            f"neighbor {peering.node} port {peering.node_port} as {peering.node_as}",
            f"hold time {peering.hold_s}",
            "direct" if peering.node_as != self.as_number and not peering.multihop else "multihop",
            "connect delay time 1",
            "connect retry time 1",
            "error wait time 1, 1",
            f"graceful restart {'on' if peering.restart_s else 'off'}",
            f"long lived graceful restart {'on' if peering.long_lived_s else 'off'}",
        ]
        lines += [f"graceful restart time {peering.restart_s}"] if peering.restart_s else []
        lines += [f"long lived stale time {peering.long_lived_s}"] if peering.long_lived_s else []
        lines += [f'password "{peering.password}"'] if peering.password else []
        lines += ["ttl security on"] if peering.ttl_security else []
        lines += ["passive on"] if peering.passive else []
        lines += ["rr client"] if peering.client else []
        lines += ["bfd on"] if peering.bfd else []
        limit = f"import limit {peering.most_in} action restart;" if peering.most_in else ""
        # what a reflector passes on keeps its next hop
        next_hop = "next hop self ebgp" if self.as_number == peering.node_as else "next hop self"
        meds = "".join(
            f" if net = {prefix} then bgp_med = {said.med};"
            for prefix, said in self.announced.items()
            if said.med is not None and (":" in prefix) == (peering.version == 6)
        )
        export = f"export filter {{ if source = RTS_DEVICE then reject;{meds} accept; }}"
        channel = f"  ipv{peering.version} {{ import all; {export}; {next_hop}; {limit} }};"
        body = "\n".join(f"  {line};" for line in lines)
        return f"protocol bgp {_name(peering.node)} {{\n{body}\n{channel}\n}}\n"

    def session(self, node: str = NODE4) -> View:
        text = self._bird.ask("show", "protocols", "all", _name(node))
        state = _value(text, "BGP state")
        theirs = text.partition("Neighbor capabilities")[2].partition("Session:")[0]
        return View(
            state=state,
            up=state == "Established",
            node_as=int(_value(text, "Neighbor AS") or 0),
            local_as=int(_value(text, "Local AS") or 0),
            hold_s=int(_value(text, "Hold timer").rpartition("/")[2] or 0),
            restart_s=int(_value(theirs, "Restart time") or 0),
            error=_value(text, "Last error"),
            capabilities=theirs,
        )

    def watched(self, node: str = NODE4) -> str:
        """How BFD stands with a node."""
        found = re.search(rf"^{re.escape(node)}\s+\S+\s+(\S+)", self._bird.ask("show", "bfd", "sessions"), re.MULTILINE)
        return found[1].lower() if found else ""

    def silence(self) -> None:
        assert self._bird.process is not None
        self._bird.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        assert self._bird.process is not None
        self._bird.process.send_signal(signal.SIGCONT)

    def heard(self, node: str = NODE4) -> Mapping[str, Heard]:
        text = self._bird.ask("show", "route", "all", "protocol", _name(node))
        entries = re.split(r"^(?=[\da-f.:]+/\d+\s)", text, flags=re.MULTILINE)[1:]
        return {entry.split()[0]: _heard(entry) for entry in entries}


def _name(node: str) -> str:
    return "n_" + re.sub(r"[.:]", "_", node)


def _saying(said: Said) -> str:
    """The attributes of an announcement, in BIRD's filter language. A MED is kept only if the export filter sets it."""
    path = [f"bgp_path.prepend({number});" for number in reversed(said.path)]
    standard = [f"bgp_community.add(({each.replace(':', ',')}));" for each in said.standard]
    large = [f"bgp_large_community.add(({each.replace(':', ',')}));" for each in said.large]
    preference = [f"bgp_local_pref = {said.local_pref};"] if said.local_pref is not None else []
    return " ".join([*path, *standard, *large, *preference])


def _value(text: str, name: str) -> str:
    """What stands behind `name:` in a line of its own, "" when there is none."""
    found = re.search(rf"^[ \t]*{re.escape(name)}:(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _heard(entry: str) -> Heard:
    communities = re.findall(r"\(([\d, ]+)\)", _value(entry, "BGP.community") + _value(entry, "BGP.large_community"))
    med, preference = _value(entry, "BGP.med"), _value(entry, "BGP.local_pref")
    return Heard(
        next_hop=_value(entry, "BGP.next_hop").split()[0],
        path=tuple(map(int, _value(entry, "BGP.as_path").split())),
        origin=_value(entry, "BGP.origin"),
        communities=frozenset(re.sub(r",\s*", ":", each) for each in communities),
        med=int(med) if med else None,
        local_pref=int(preference) if preference else None,
        originator=_value(entry, "BGP.originator_id"),
        clusters=tuple(_value(entry, "BGP.cluster_list").split()),
        stale=bool(re.search(r"\[n_\w+ [^\]]*\].*\(\d+s\)", entry.splitlines()[0])),
    )

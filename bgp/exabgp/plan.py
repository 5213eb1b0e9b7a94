"""What ExaBGP should run with: a speaker, and the configuration file that says it."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from bgp.exabgp.conf import render
from bgp.model import Session, Speaker
from core.addr import Address


@dataclass(frozen=True, slots=True)
class Plan:
    """`listening` only a new process can change; `text`, the file, can be read again."""

    speaker: Speaker
    text: str

    @property
    def listening(self) -> tuple[str, ...]:
        """Addresses and, last, the port."""
        return (*map(str, self.speaker.listen), str(self.speaker.port))

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The sessions there should be."""
        return self.speaker.sessions

    @property
    def peers(self) -> frozenset[Address]:
        """Who is at their other ends."""
        return frozenset(each.peer for each in self.sessions)

    def without(self, peers: Collection[Address], bridge: Path) -> Plan:
        """The same but for the sessions with `peers`."""
        kept = tuple(each for each in self.sessions if each.peer not in peers)
        return planned(replace(self.speaker, sessions=kept), bridge)


def planned(speaker: Speaker, bridge: Path) -> Plan:
    """For an ExaBGP that is to reach us at the UNIX socket `bridge`."""
    script = str(Path(__file__).with_name("bridge.py"))
    return Plan(speaker, render(speaker, [sys.executable, "-S", "-E", script, str(bridge)]))

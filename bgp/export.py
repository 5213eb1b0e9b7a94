"""The adj-RIB-out: what each session is told. Pure, from the speaker and the best paths it has heard."""

from __future__ import annotations

from collections.abc import Mapping

from bgp.bestpath import Candidate
from bgp.model import Attributes, Speaker
from core.addr import Address, Network


def exports(speaker: Speaker, best: Mapping[Network, Candidate]) -> Mapping[Address, Mapping[Network, Attributes]]:
    """What each session is told, by its peer."""
    return {
        session.peer: {prefix: Attributes() for prefix in speaker.own if prefix.version == session.family}
        for session in speaker.sessions
    }

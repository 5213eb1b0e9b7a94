"""ExaBGP's configuration file for a speaker: sessions and nothing else. What is announced goes through its API.

`manual-eor` holds each End-of-RIB back until we have announced everything: after a restart a peer drops every
route of ours that was not announced again by then. `graceful-restart` 0 would mean no capability at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bgp.model import Session, Speaker

MAX_TTL: Final = 255


def render(speaker: Speaker, bridge: Sequence[str]) -> str:
    """The file's text. `bridge` is the argument vector of the helper that ExaBGP starts."""
    run = " ".join(bridge)
    head = f"process muslin {{\n  run {run};\n  encoder json;\n  respawn true;\n}}\n"
    return head + "".join(_neighbor(session, speaker) for session in speaker.sessions)


def _neighbor(session: Session, speaker: Speaker) -> str:
    lines = [
        f"router-id {speaker.router_id}",
        f"local-address {session.local or 'auto'}",
        f"local-as {session.local_as}",
        f"peer-as {session.remote_as}",
        f"hold-time {session.hold_s}",
        f"passive {'true' if session.passive else 'false'}",
        f"connect {session.port}",
        "manual-eor true",
    ]
    if session.ttl_hops is not None:
        lines += [f"outgoing-ttl {MAX_TTL}", f"incoming-ttl {MAX_TTL + 1 - session.ttl_hops}"]
    restart = f"    graceful-restart {session.restart_s};\n" if session.restart_s else ""
    return (
        f"\nneighbor {session.peer} {{\n"
        + "".join(f"  {line};\n" for line in lines)
        + f"  capability {{\n    asn4 enable;\n    route-refresh enable;\n{restart}  }}\n"
        + f"  family {{\n    ipv{session.family.value} unicast;\n  }}\n"
        + f"  api muslin-{session.peer.packed.hex()} {{\n    processes [ muslin ];\n    neighbor-changes;\n"
        + "    receive {\n      parsed;\n      open;\n      update;\n    }\n  }\n}\n"
    )

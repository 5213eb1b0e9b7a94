"""ExaBGP's configuration file for a speaker: sessions and nothing else. What is announced goes through its API.

`manual-eor` holds each End-of-RIB back until we have announced everything: after a restart a peer drops every
route of ours that was not announced again by then. `graceful-restart` 0 would mean the hold time, so no capability is
asked for by leaving it out. `adj-rib-in` false: what peers say is kept by us, not twice. A password goes in base64, for
it may hold what the file's grammar means something by. Long-lived graceful restart ExaBGP 5.0.15 cannot announce: it
has no capability 71, and sends none that it does not know; what we do for a lost peer's routes is in `bgp.paths.rib`.

TTL security (RFC 5082): `incoming-ttl` is for connections that ExaBGP opens; for those it accepts see
`bgp.exabgp.process`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

from bgp.model import Session, Speaker
from core.addr import Address

MAX_TTL: Final = 255


def render(speaker: Speaker, bridge: Sequence[str]) -> str:
    """The file's text. `bridge` is the argument vector of the helper that ExaBGP starts."""
    run = " ".join(bridge)
    head = f"process muslin {{\n  run {run};\n  encoder json;\n  respawn true;\n}}\n"
    return head + "".join(_neighbor(session, speaker) for session in speaker.sessions)


def _local(session: Session, speaker: Speaker) -> Address | None:
    """ExaBGP learns an `auto` address when it calls, and accepts no call before: who only waits must name one."""
    if session.local is None and session.passive:
        return next((each for each in speaker.addresses if each.version == session.family.value), None)
    return session.local


def least_ttl(hops: int) -> int:
    """The lowest TTL with which a packet from a peer at most `hops` away arrives, if it was sent with the highest."""
    return MAX_TTL + 1 - hops


def _neighbor(session: Session, speaker: Speaker) -> str:
    lines = [
        f"router-id {speaker.router_id}",
        f"local-address {_local(session, speaker) or 'auto'}",
        f"local-as {session.local_as}",
        f"peer-as {session.remote_as}",
        f"hold-time {session.hold_s}",
        f"passive {'true' if session.passive else 'false'}",
        f"connect {session.port}",
        "manual-eor true",
        "adj-rib-in false",
    ]
    if session.ttl_hops is not None:
        lines += [f"outgoing-ttl {MAX_TTL}", f"incoming-ttl {least_ttl(session.ttl_hops)}"]
    if session.password:
        lines += ["md5-base64 true", f"md5-password {base64.b64encode(session.password.encode()).decode()}"]
    restart = f"    graceful-restart {session.restart_s};\n" if session.restart_s else ""
    return (
        f"\nneighbor {session.peer} {{\n"
        + "".join(f"  {line};\n" for line in lines)
        + f"  capability {{\n    asn4 enable;\n    route-refresh enable;\n{restart}  }}\n"
        + f"  family {{\n    ipv{session.family.value} unicast;\n  }}\n"
        + f"  api muslin-{session.peer.packed.hex()} {{\n    processes [ muslin ];\n    neighbor-changes;\n"
        + "    receive {\n      parsed;\n      open;\n      update;\n    }\n  }\n}\n"
    )

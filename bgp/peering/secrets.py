"""Passwords of sessions (TCP-MD5, RFC 2385), looked up where they are referred to. Pure.

A `secretKeyRef` names a Secret and a key in it; the Secret lies in the first of NAMESPACES that has one of that name.
Whatever is missing or cannot be used as it stands is a ValueError that says what: a session without the password that
somebody asked for would be open where they asked for closed. No error says what a secret holds.
"""

from __future__ import annotations

from typing import Final

from core.resources import Secret
from core.resources.bgp import Password
from core.snapshot import Snapshot

NAMESPACES: Final = ("calico-system", "kube-system")
"""Where passwords are looked up, the first first."""

MOST_BYTES: Final = 80
"""The longest key the kernel takes (TCP_MD5SIG_MAXKEYLEN, include/uapi/linux/tcp.h)."""


def password(snapshot: Snapshot, given: Password | None) -> str:
    """The password that is meant; "" when none is asked for. Raises ValueError when it cannot be had."""
    if given is None:
        return ""
    where = given.secret_key_ref
    if where is None or not where.name or not where.key:
        raise ValueError("password: secretKeyRef does not name a Secret and a key in it")
    found = next((each for each in (snapshot.get(Secret, where.name, space) for space in NAMESPACES) if each), None)
    if found is None:
        raise ValueError(f"password: there is no Secret {where.name} in namespace {' or '.join(NAMESPACES)}")
    what = f"password: Secret {found.metadata.namespace}/{where.name}"
    held = found.value(where.key)
    if held is None:
        raise ValueError(f"{what} has no key {where.key!r}")
    return _usable(held, f"{what}: the value of {where.key!r}")


def _usable(held: bytes, what: str) -> str:
    if not held:
        raise ValueError(f"{what} is empty")
    if len(held) > MOST_BYTES:
        raise ValueError(f"{what} has {len(held)} bytes; a session's password has at most {MOST_BYTES}")
    if held.endswith(b"\n"):
        raise ValueError(f"{what} ends with a line break; make it anew without (printf, or echo -n)")
    if not held.isascii() or not (text := held.decode("ascii")).isprintable():
        raise ValueError(f"{what} has characters that are not printable ASCII")
    return text

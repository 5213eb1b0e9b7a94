"""BGPFilter: which routes a session takes and tells, and what it changes in them. Pure.

rules of a family and direction, in order ── first that matches ──> Accept, with its operations | Reject
none matches ──> the next filter of the session ──> nobody says anything: what the caller does by default
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A BGPFilter, checked and ready to be asked."""

    name: str

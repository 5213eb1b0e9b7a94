"""Decisions and objects for programs: what `plan`, `policy test` and `lint` put into their JSON."""

from __future__ import annotations

from typing import Any

from cli.kinds import reference
from policy.model import Decision
from policy.whatif.plan import cause


def document(decision: Decision) -> dict[str, Any]:
    """One decision: verdict, what decided, in parts and in words."""
    reason = decision.reason
    return {
        "verdict": decision.verdict.value,
        "direction": reason.direction.value,
        "cause": reason.cause.value,
        "tier": reason.tier,
        "policy": reference(reason.policy) if reason.policy else "",
        "profile": reason.profile,
        "rule": reason.rule,
        "policies": [reference(each) for each in reason.policies],
        "by": cause(reason),
        "why": str(reason),
    }

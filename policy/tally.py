"""What the name of a counter object says (`policy.outcomes.counter` makes it): a decision, without any table at hand.

The kernel describes itself this way: whoever can read our table knows what was decided how often and why, also
while no agent runs and the datastore is away.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from core.resources.policy import Direction
from policy.model import Plane, Verdict

_SIDE: Final = re.compile(rf"(?:({'|'.join(Plane)})-)?(in|out)")
_DIRECTIONS: Final = {"in": Direction.INGRESS, "out": Direction.EGRESS}
_BARE: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """A kind of decision. `staged`: what staged policies would have decided. `direction` is None where it is not told.

    `tier`, `policy` (kind/namespace/name or kind/name) and `rule` are "" where none decided; `why` is what then did:
    `end-of-tier`, a profile's name.
    """

    verdict: Verdict
    plane: Plane = Plane.WORKLOAD
    direction: Direction | None = None
    tier: str = ""
    policy: str = ""
    rule: str = ""
    why: str = ""
    staged: bool = False

    @property
    def rule_name(self) -> str:
        """In one word, for people: `default/networkpolicies/shop/web/0`, `default/end-of-tier`."""
        return "/".join(filter(None, (self.tier, self.policy, self.rule, self.why)))


def tally(name: str) -> Tally:
    """What a counter of ours counts. A name that is not one of ours says nothing but itself."""
    words = name.split("/")
    staged = words[0] == "pending"
    words = words[staged:]
    verdict = next((each for each in Verdict if each.lower() == words[0]), None)
    if verdict is None:
        return Tally(verdict=Verdict.DENY, why=name)
    side = _SIDE.fullmatch(words[1]) if len(words) > 1 else None
    if side is None:
        return Tally(verdict=verdict, why="/".join(words[1:]), staged=staged)
    tier, policy, rule, why = _decided(words[2:])
    return Tally(
        verdict=verdict,
        plane=Plane(side[1]) if side[1] else Plane.WORKLOAD,
        direction=_DIRECTIONS[side[2]],
        tier=tier,
        policy=policy,
        rule=rule,
        why=why,
        staged=staged,
    )


def _decided(words: list[str]) -> tuple[str, str, str, str]:
    """Tier, policy, rule and what else decided."""
    match words:
        case [tier, "end-of-tier"]:
            return tier, "", "", "end-of-tier"
        case ["profile", name, rule] if rule.isdigit():
            return "", "", rule, f"profile/{name}"
        case ["profile", _, "missing"] | ["unreadable-policy", *_]:
            return "", "", "", "/".join(words)
        case [tier, *policy, rule] if len(policy) >= _BARE and rule.isdigit():
            return tier, "/".join(policy), rule, ""
    return "", "", "", "/".join(words)

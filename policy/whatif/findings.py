"""What lint can say: each finding's code, how grave it is, and how people read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from core.names import Key


class Severity(StrEnum):
    """How grave: surely wrong, most likely wrong, worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


CODES: Final[Mapping[str, tuple[Severity, str]]] = MappingProxyType(
    {
        "no-such-tier": (Severity.ERROR, "create the tier, or name one that is there"),
        "not-enforced": (Severity.ERROR, "write it in a way that can be enforced"),
        "only-logs": (Severity.WARNING, "add an Allow or a Pass rule after the Log rules"),
        "selects-nothing": (Severity.WARNING, "mend the selector, or delete the policy"),
        "after-catch-all": (Severity.WARNING, "move the rule before the one that denies everything"),
        "shadowed-rule": (Severity.WARNING, "move the rule before it, or delete one of the two"),
        "repeated-rule": (Severity.INFO, "delete one of the two"),
        "never-decides": (Severity.WARNING, "see with `muslin explain` what decides instead; move or delete the rule"),
        "peer-matches-nothing": (Severity.WARNING, "mend the selector: no endpoint and no network set has such labels"),
        "service-of-nobody": (Severity.WARNING, "mend its name or namespace, or see why no endpoint of it is ready"),
        "unknown-port-name": (Severity.WARNING, "give the port this name where it is served, or use its number"),
        "prefix-of-pods": (Severity.INFO, "select pods by labels: their addresses change"),
        "isolates": (Severity.INFO, "nothing, if this is meant as a default deny"),
        "empty-tier": (Severity.INFO, "delete the tier, if nothing is to come into it"),
        "not-compared": (Severity.INFO, "nothing; fewer rules for the same endpoints would be easier to judge"),
    }
)
"""Every code: its severity, and what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not, or may not be, as meant: of which object, at which field, in words."""

    code: str
    key: Key
    path: str
    what: str

    @property
    def severity(self) -> Severity:
        """How grave."""
        return CODES[self.code][0]

    @property
    def remedy(self) -> str:
        """What to do."""
        return CODES[self.code][1]

    @property
    def sort_key(self) -> tuple[int, Key, str, str]:
        """The gravest first, then object by object."""
        return list(Severity).index(self.severity), self.key, self.path, self.code

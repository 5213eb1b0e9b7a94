"""How long ago an agent was last heard of, told by clocks that may disagree. Pure.

A report bears the time of its node's clock, and a revision. Revisions grow in the order of the writes, whatever the
clocks say: so a report was written no earlier than any report of a lower revision. That clears an agent whose clock is
slow, as long as one other's is right; a time that has not come yet says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cli.render import span
from core.names import Key
from core.resources.status import SILENT_AFTER_S

SLACK_S: Final = 5.0
"""How far in the future a report may lie before its clock is called wrong, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One report: `age_s` seconds old at most (None: nothing tells), and whether its own time has not come yet."""

    age_s: float | None
    ahead: bool = False

    @property
    def silent(self) -> bool:
        """Whether the agent should have been heard of since."""
        return not self.ahead and self.age_s is not None and self.age_s > SILENT_AFTER_S

    def __str__(self) -> str:
        """The cell of a table."""
        return "clock" if self.ahead else "?" if self.age_s is None else span(self.age_s)

    def wrong(self, agent: str) -> str:
        """A sentence when the agent may be dead; "" when it is known to live."""
        if self.silent:
            assert self.age_s is not None
            return f"{agent} has been silent for {span(self.age_s)}; what is shown of it is from its last report"
        if self.age_s is not None and self.age_s <= SILENT_AFTER_S:
            return ""
        if self.ahead:
            return f"whether {agent} lives cannot be told: by the clock of this machine its report is from the future"
        return f"whether {agent} lives cannot be told: its report bears no time"


def seen(reports: Iterable[tuple[Key, int, str]], now: datetime) -> Mapping[Key, Seen]:
    """Each report, given as (key, revision, RFC 3339 time), as of `now`."""
    latest: datetime | None = None
    found = {}
    for key, _, stamp in sorted(reports, key=lambda report: report[1]):
        own = _moment(stamp)
        ahead = own is not None and (own - now).total_seconds() > SLACK_S
        if own is not None and not ahead:
            latest = own if latest is None else max(latest, own)
        found[key] = Seen(age_s=None if latest is None else max(0.0, (now - latest).total_seconds()), ahead=ahead)
    return found


def _moment(stamp: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

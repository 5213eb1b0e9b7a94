"""The exceptions muslin raises on purpose, as a tree.

    MuslinError              one sentence for the person who reads it: what, where, what to do
    ├── Invalid              what was given is wrong; carries every Problem found, each with a path
    ├── Conflict             a compare-on-revision did not hold; read again and retry
    ├── NotFound             no object under that key
    ├── Unavailable          the datastore (or another service) is away; retry with backoff
    └── Unsupported          this machine lacks a tool, a right or a kernel feature; names the remedy

Raised at the edges, caught in three places only: a driver per key, the reconciler, the supervisor (and the
command line, which prints the sentence and exits 1). Anything else that escapes is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class MuslinError(Exception):
    """Base of every error raised on purpose; `str()` is a sentence for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with what a user gave.

    `where` is the file or stream (`policies.yaml[2]`), `what` the object (`IPPool/rack-1`), `path` the field
    (`spec.cidr`), `why` the reason with the remedy when there is one. Any of the first three may be empty.
    """

    why: str
    path: str = ""
    what: str = ""
    where: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.what, self.path, self.why) if part)


class Invalid(MuslinError):
    """Input that is refused as a whole; nothing was changed. `problems` is never empty."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Conflict(MuslinError):
    """A compare-on-revision did not hold: somebody else wrote first, or the object exists already."""

    def __init__(self, what: str, expected: int | None, actual: int | None) -> None:
        self.what, self.expected, self.actual = what, expected, actual
        super().__init__(f"{what}: expected revision {expected}, found {actual}; read it again and retry")


class NotFound(MuslinError):
    """No object under that name."""


class Unavailable(MuslinError):
    """A service we depend on cannot be reached now; what is programmed stays and the caller retries."""


class Unsupported(MuslinError):
    """This machine lacks a tool, a right or a kernel feature; the sentence says what to install or run."""


def on_purpose(error: BaseException) -> tuple[MuslinError, ...]:
    """The MuslinErrors that `error` is, or is a group of (a TaskGroup's); empty when there is a bug among them."""
    if isinstance(error, MuslinError):
        return (error,)
    if not isinstance(error, BaseExceptionGroup):
        return ()
    found = [on_purpose(each) for each in error.exceptions]
    return tuple(each for group in found for each in group) if all(found) else ()

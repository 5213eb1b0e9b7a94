"""What the demo saw: a list of checks, each said as it is made, that can pass from one machine to another."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from core.resources.base import Base

Say = Callable[[str], None]
K = TypeVar("K", bound=Hashable)

_GREEN, _RED, _BOLD, _DIM, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[2m", "\x1b[0m"


class Check(Base, frozen=True, kw_only=True):
    """One thing looked at: what should hold, whether it did, and what was seen."""

    what: str
    held: bool
    seen: str = ""


class Checks:
    """Makes checks and says each. `colour` is for terminals."""

    def __init__(self, say: Say, *, colour: bool = False) -> None:
        self.say = say
        self.done: list[Check] = []
        self._colour = colour
        self._began = time.monotonic()

    def step(self, number: int, title: str) -> None:
        """Begin a step of the demo."""
        self.say(self._in(_BOLD, f"{number}. {title}") + self._in(_DIM, f"  [{time.monotonic() - self._began:.0f} s]"))

    def progress(self, text: str) -> None:
        """Say what is going on; not a check."""
        self.say(self._in(_DIM, f"   .. {text}"))

    def check(self, what: str, held: object, seen: object = "") -> bool:
        """Note whether `what` held, with what was seen."""
        return self.take(Check(what=what, held=bool(held), seen=str(seen)))

    def take(self, check: Check) -> bool:
        """Note a check made elsewhere."""
        self.done.append(check)
        mark = self._in(_GREEN, "ok  ") if check.held else self._in(_RED, "FAIL")
        self.say(f"   {mark} {check.what}" + (self._in(_DIM, f"  ({check.seen})") if check.seen else ""))
        return check.held

    def same(self, what: str, seen: Mapping[K, object], expected: Mapping[K, object]) -> bool:
        """Check that two tables agree, and say where they do not."""
        wrong = sorted(str(key) for key in seen.keys() | expected.keys() if seen.get(key) != expected.get(key))
        return self.check(what, not wrong, f"{len(expected)} agree" if not wrong else f"wrong: {_few(wrong)}")

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not hold."""
        return tuple(check for check in self.done if not check.held)

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colour else text

    def write(self, path: Path) -> None:
        """Leave every check in a file, for the process that started this one."""
        path.write_bytes(msgspec.json.encode(self.done))


def read(path: Path) -> list[Check]:
    """Checks that another process left."""
    return msgspec.json.decode(path.read_bytes(), type=list[Check])


def _few(words: Iterable[str], most: int = 6) -> str:
    words = list(words)
    rest = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + rest

"""The few questions that validators ask, each answered with problems at a path (or none)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

from core import values
from core.errors import Problem
from core.selector import MOST_CHARACTERS, parse
from core.shape import meant

LABEL_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
"""A DNS label (RFC 1123): tiers, namespaces."""

_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_INTERFACE: Final = re.compile(r"[a-zA-Z0-9_.-]{1,15}")


def reads(path: str, text: Any, read: Callable[[Any], object]) -> Iterator[Problem]:
    """That `read(text)` does not raise ValueError; the reason is the error's own."""
    try:
        read(text)
    except ValueError as error:
        yield Problem(path=path, why=str(error))


def each(path: str, texts: Sequence[Any], read: Callable[[Any], object]) -> Iterator[Problem]:
    """`reads` for every item of a list."""
    for index, text in enumerate(texts):
        yield from reads(f"{path}[{index}]", text, read)


def when_set(path: str, text: Any, read: Callable[[Any], object]) -> Iterator[Problem]:
    """`reads`, unless the field is absent or empty."""
    if text is not None and text != "":
        yield from reads(path, text, read)


def one_of(path: str, value: str | None, allowed: Collection[str]) -> Iterator[Problem]:
    """That a field, when set, is one of a few words."""
    if value and value not in allowed:
        yield Problem(path=path, why=f"{str(value)!r} is not one of {', '.join(allowed)}{meant(value, allowed)}")


def within(path: str, value: int | None, least: int, most: int) -> Iterator[Problem]:
    """That a number, when set, lies within bounds (both included)."""
    if value is not None and not least <= value <= most:
        yield Problem(path=path, why=f"{value} is not within {least} to {most}")


def lasts(path: str, text: str | None, least_s: float, most_s: float) -> Iterator[Problem]:
    """That a duration, when set, is one, and lies within bounds (seconds, both included)."""
    if not text:
        return
    unread = list(reads(path, text, values.duration))
    yield from unread
    if not unread and not least_s <= values.duration(text) <= most_s:
        yield Problem(path=path, why=f"{text} is not within {least_s:g}s to {most_s:g}s")


def at_most(path: str, items: Sequence[object] | None, most: int) -> Iterator[Problem]:
    """That a list is not too long."""
    if items is not None and len(items) > most:
        yield Problem(path=path, why=f"has {len(items)} items; at most {most} are allowed")


def once(path: str, items: Sequence[object] | None) -> Iterator[Problem]:
    """That no item of a list is given twice."""
    for index, item in enumerate(items or ()):
        if item in (items or ())[:index]:
            yield Problem(path=f"{path}[{index}]", why=f"{str(item)!r} is given twice")


def conflict(path: str, other: str, why: str = "") -> Problem:
    """Two fields that exclude each other."""
    return Problem(path=path, why=f"cannot be set together with {other}{f': {why}' if why else ''}")


def selector(path: str, text: str, *, global_: bool = False) -> Iterator[Problem]:
    """That a selector parses and is short enough. `global()` is allowed alone, and only with `global_`."""
    if len(text) > MOST_CHARACTERS:
        yield Problem(path=path, why=f"has {len(text)} characters; a selector has at most {MOST_CHARACTERS}")
        return
    try:
        canonical = parse(text).canonical
    except ValueError as error:
        yield Problem(path=path, why=str(error))
        return
    if "global()" not in canonical or (global_ and canonical == "global()"):
        return
    if global_:
        yield Problem(path=path, why="global() stands alone; it cannot be combined with other tests")
    else:
        yield Problem(path=path, why="global() is for a rule's namespaceSelector only")


def name(text: str) -> str:
    """A DNS subdomain (RFC 1123), as most names are."""
    if len(text) > 253 or not _SUBDOMAIN.fullmatch(text):
        raise ValueError(f"{text!r} is not a name: at most 253 of a-z 0-9 - . which begins and ends with a-z 0-9")
    return text


def interface_name(text: str) -> str:
    """A Linux interface's name."""
    if not _INTERFACE.fullmatch(text):
        raise ValueError(f"{text!r} is not an interface name: at most 15 of a-z A-Z 0-9 _ . -")
    return text

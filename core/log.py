"""Logs: events with fields, one line each, to stderr. JSON lines for machines, readable ones for a person.

An event's name is fixed words joined by dots (`reconcile.failed`); what varies goes into fields. A field that
is a password by its name, and a password inside a longer text (a generated BGP configuration), is replaced
before any renderer sees it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from core.errors import Invalid, Problem

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

HIDDEN: Final = "***"

_SECRET_NAME: Final = re.compile(r"password|passwd|secret|token|private_?key", re.IGNORECASE)
_SECRET_TEXT: Final = re.compile(
    r"""((?:password|passwd|secret|token)["']?\s*[=:\s]\s*)("[^"]*"|'[^']*'|[^\s;,}]+)""", re.IGNORECASE
)

_TRACEBACKS: Final = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
"""A crash as where it was, without the values there: they fill pages, and secrets may be among them."""


def configure(level: str = "info", json: bool | None = None, stream: TextIO | None = None) -> None:
    """Set up the process's logs; call once, first. `json` None: JSON lines unless `stream` is a terminal.

    `level` is one of LEVELS; another raises `Invalid`. `stream` is stderr when None.
    """
    if level not in LEVELS:
        raise Invalid([Problem(why=f"no such log level; one of {', '.join(LEVELS)}", what=repr(level))])
    stream = stream or sys.stderr
    terminal = stream.isatty()
    as_json = not terminal if json is None else json
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=terminal)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([_TRACEBACKS] if as_json else []),
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: hides passwords by field name, however deep, and inside texts."""
    for name, value in event.items():
        event[name] = _hide(name, value)
    return event


def _hide(name: str, value: Any) -> Any:
    if _SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, str):
        return _SECRET_TEXT.sub(rf"\g<1>{HIDDEN}", value)
    if isinstance(value, Mapping):
        return {key: _hide(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hide("", item) for item in value]
    return value

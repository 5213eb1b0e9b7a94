"""Where a user's text comes from: a file, a pipe, stdin. Read within a bound, so that nothing endless is swallowed."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from core.errors import Invalid, Problem

LARGEST: Final = 64 * 2**20
"""Most bytes of one text; the manifests of ten thousand pods are a tenth of it."""

STDIN: Final = Path("/dev/stdin")


def read_file(path: Path) -> str:
    """The text of a regular file or a pipe. Raises `Invalid` when it is neither, too large or unreadable."""
    if path == STDIN:
        return read_stdin(str(path))
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise _refused(str(path), "is neither a file nor a pipe")
        with path.open("rb") as opened:
            return _text(opened, str(path))
    except OSError as error:
        raise _refused(str(path), f"cannot be read: {error.strerror}") from None


def read_stdin(where: str) -> str:
    """The text that stdin brings until its end; `where` is what the user called it. Raises as `read_file` does."""
    try:
        with os.fdopen(os.dup(0), "rb") as opened:
            return _text(opened, where)
    except OSError as error:
        raise _refused(where, f"cannot be read: {error.strerror}") from None


def _text(opened: BinaryIO, where: str) -> str:
    found = opened.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise _refused(where, f"is larger than {LARGEST >> 20} MiB; give it in smaller parts")
    try:
        return found.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(where, f"cannot be read: byte {error.start} is not UTF-8") from None


def _refused(where: str, why: str) -> Invalid:
    return Invalid([Problem(where=where, why=why)])

"""Rules for Secret: Kubernetes' own. No problem says what a secret holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from core.documents import join
from core.errors import Problem
from core.resources import Secret
from core.resources.secret import decoded
from core.validate.checks import reads

MOST_BYTES: Final = 1024 * 1024

_KEY: Final = re.compile(r"[-._a-zA-Z0-9]{1,253}")


def secret(given: Secret) -> Iterator[Problem]:
    """A Secret."""
    size = 0
    for field, held in (("data", given.data), ("stringData", given.string_data)):
        for key, text in held.items():
            path = join(field, key)
            size += len(text)
            if not _KEY.fullmatch(key) or key in (".", ".."):
                yield Problem(path=path, why="is not a key: at most 253 of a-z A-Z 0-9 - _ .")
            if field == "data":
                yield from reads(path, text, decoded)
    if size > MOST_BYTES:
        yield Problem(path="data", why=f"has {size} bytes; a Secret has at most {MOST_BYTES}")

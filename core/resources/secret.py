"""Kubernetes' Secret: where passwords of BGP sessions lie."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import ClassVar

from msgspec.structs import replace

from core.names import Kind
from core.resources.base import Resource


class Secret(Resource, frozen=True, kw_only=True):
    """As Kubernetes has it: `data` is base64; `stringData` is plain, for writing only, and kept as `data`.

    Neither is shown by `repr`, so that no log and no traceback has them.
    """

    KIND: ClassVar[Kind] = Kind("core", "secrets", "Secret", "v1", True)
    data: Mapping[str, str] = {}
    string_data: Mapping[str, str] = {}
    type: str = "Opaque"
    immutable: bool | None = None

    def value(self, key: str) -> bytes | None:
        """What is kept under `key`; None when there is no such key. ValueError when it is not base64."""
        if key in self.string_data:
            return self.string_data[key].encode()
        return decoded(self.data[key]) if key in self.data else None

    def folded(self) -> Secret:
        """The same with `stringData` within `data`, over which it wins: equal secrets are spelt one way."""
        if not self.string_data:
            return self
        plain = {key: base64.b64encode(text.encode()).decode() for key, text in self.string_data.items()}
        return replace(self, data=dict(self.data) | plain, string_data={})

    def __repr__(self) -> str:
        return f"Secret({self.metadata.namespace}/{self.metadata.name}, {len(self.data) + len(self.string_data)} keys)"


def decoded(text: str) -> bytes:
    """The bytes of base64 text; the ValueError does not say what they are."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError("is not base64; plain text goes under stringData") from None

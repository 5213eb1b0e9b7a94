"""What `decisions` and `denied` refuse before they ask the kernel; what they show is in tests/felix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Muslin = Callable[[str], Any]


@pytest.mark.parametrize("command", ["decisions", "denied"])
def test_an_end_is_for_watching(muslin: Muslin, command: str) -> None:
    said = muslin(f"{command} --for 2")
    assert said.code == 2
    assert "ends --watch" in said.err

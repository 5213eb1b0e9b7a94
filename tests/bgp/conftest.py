"""The world that real sessions run in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bgp_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    try:
        yield made
    finally:
        made.close()

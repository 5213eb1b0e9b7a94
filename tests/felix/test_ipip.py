"""Felix's tunnel, on a kernel that has ipip."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ipip_kernel import passed


@pytest.mark.uml
async def test_the_tunnel_on_a_kernel_that_has_ipip() -> None:
    assert "4 passed" in await passed(Path(__file__).with_name("ipip_cases.py"))

"""Two speakers in one network namespace would each undo the other's routes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bgp.agent import run
from bgp.model import Config
from core.errors import Unavailable
from linux.alone import alone
from linux.netns import scratch_namespace

pytestmark = pytest.mark.kernel


async def test_a_second_bgp_in_one_network_namespace_is_refused(tmp_path: Path) -> None:
    config = Config(node="a", datastore=f"unix:{tmp_path}/nobody", run_dir=tmp_path)
    with scratch_namespace(), alone("bgp"), pytest.raises(Unavailable, match="another bgp runs in this network"):
        await run(config)

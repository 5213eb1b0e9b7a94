"""One process of a kind in a network namespace: refused while another lives, free again however it ended."""

from __future__ import annotations

import subprocess
import sys

import pytest

from core.errors import Unavailable
from linux.alone import alone
from linux.netns import scratch_namespace

HOLDER = "import sys\nfrom linux.alone import alone\nwith alone('test'):\n print(flush=True)\n sys.stdin.read()"

pytestmark = pytest.mark.kernel


def test_another_of_that_name_is_refused_here_and_nowhere_else() -> None:
    with scratch_namespace(), alone("test"):
        with pytest.raises(Unavailable, match="another test runs in this network namespace"), alone("test"):
            raise AssertionError("two at once")
        with alone("other"):
            pass
        with scratch_namespace(), alone("test"):
            pass


def test_free_again_when_the_holder_is_killed() -> None:
    with scratch_namespace():
        holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdin
        assert holder.stdout
        with holder.stdin, holder.stdout:
            assert holder.stdout.readline() == b"\n"
            with pytest.raises(Unavailable), alone("test"):
                raise AssertionError("two at once")
            holder.kill()
            holder.wait()
        with alone("test"):
            pass

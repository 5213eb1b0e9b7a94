"""Every test here runs against the real kernel, in a network namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from linux.netns import scratch_namespace


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Move the test's thread into a fresh network namespace, and back when it ends."""
    with scratch_namespace():
        yield

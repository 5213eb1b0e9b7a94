"""One node with a datastore and a felix for all that calls the plugin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cni_node import Runtime, node

from tests.conftest import served


@pytest.fixture(scope="session")
def node_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with served() as datastore, node(datastore, tmp_path_factory.mktemp("cni")) as made:
        yield made


@pytest.fixture
def runtime(node_runtime: Runtime) -> Runtime:
    return node_runtime

"""The page on host endpoints shows the example that the repository has, and it means what the page says."""

from pathlib import Path

from core.manifest import load_path
from core.snapshot import Snapshot
from felix.desired import settings_of
from felix.failsafe import failsafes
from felix.hosts import hosts
from linux.model import Facts

HOUSE = Path(__file__).parents[2]
EXAMPLE = HOUSE / "examples" / "host-endpoints" / "guard.yaml"


def test_the_page_shows_the_example() -> None:
    page = (HOUSE / "docs" / "host-endpoints.md").read_text()
    assert f"```yaml file=guard.yaml\n{EXAMPLE.read_text()}```" in page


def test_the_example_is_one_interface_and_the_rest_and_two_failsafe_ports() -> None:
    state = Snapshot().apply(1, [(each.key, each) for each in load_path(EXAMPLE)])
    found = hosts(state, Facts(), "gateway")
    assert {host.key.name: (host.interfaces, host.everywhere) for host in found.local} == {
        "gateway-world": (("eth0",), False),
        "gateway-rack": ((), True),
    }
    assert not found.rejected
    given = failsafes(settings_of(state, "gateway"), "unix:/run/muslin/datastore.sock")
    assert {(each.port, str(each.net)) for each in given.inbound} == {(22, "198.51.100.0/24"), (179, "None")}

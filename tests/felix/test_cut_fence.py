"""How long a connection that was cut is kept from coming back: its time, or its pods' lives."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from core.addr import Address
from core.nftables import Element
from felix.cut import TCP, UDP, Cut, Ruling
from felix.fence import FENCED_S, MOST_FENCED, Fence
from linux.conntrack import Flow, Tuple
from policy.model import Cause, Decision, Direction, Reason, Verdict
from tests.felix.cluster import pod
from tests.felix.test_cut import DB, WEB, flow, ruling
from tests.felix.test_cut_hosts import ruling as guarded_ruling

DENIED = Decision(Verdict.DENY, Reason(cause=Cause.UNKNOWN, direction=Direction.INGRESS))
NOW = ruling()
THERE = replace(NOW, interfaces=frozenset(owner[1] for owner in NOW.owners.values()))
AWAY = flow("10.0.0.1", "10.0.9.9")
LOCAL, PASSING = flow("10.0.0.1", "10.0.0.2"), flow("192.0.2.1", "10.0.9.9")
HIDDEN = flow("10.0.0.1", "192.0.2.1", reply=Tuple(ip_address("192.0.2.1"), ip_address("10.1.0.1"), TCP, 80, 61000))


def fenced(*cut: Cut) -> Fence:
    return Fence().after(cut, NOW.owners, now=0)


def test_a_fence_lasts_its_time_and_stands_in_the_table() -> None:
    tcp, udp = flow("10.0.0.1", "10.0.0.2"), flow("fd00::1", "fd00::2", 53, UDP)
    icmp, gone = flow("10.0.0.1", "10.0.0.2", protocol=1), flow("10.0.0.1", "10.0.0.9")
    fence = fenced(Cut(tcp, "", DENIED), Cut(udp, "", DENIED), Cut(icmp, "", DENIED), Cut(gone, "", fenced=False))
    assert {each for each in fence.rules.elements if "pods" not in each.set} == {
        Element("cut4", "10.0.0.2 . 6 . 80 . 10.0.0.1 . 40000"),
        Element("cut6", "fd00::2 . 17 . 53 . fd00::1 . 40000"),
    }
    assert fence.over_at == FENCED_S[UDP]
    assert Fence.found(fence.rules.elements, 0) == fence
    later = fence.after([], {}, FENCED_S[UDP])
    assert set(later.until) == {tcp.reply}
    assert later.after([], {}, FENCED_S[TCP]).rules == Fence().rules
    assert not Fence().rules.chains, "no fence costs nothing"


def test_a_fence_has_an_end() -> None:
    def cut(number: int) -> Cut:
        return Cut(flow(str(ip_address(0x0B000000 + number)), "10.0.0.2"), "", DENIED)

    fence = fenced(*map(cut, range(MOST_FENCED + 5)))
    assert len(fence.until) == MOST_FENCED
    assert cut(4).flow.reply not in fence.until
    assert cut(5).flow.reply in fence.until


def without(ruling: Ruling, *addresses: Address) -> Ruling:
    return replace(ruling, owners={each: own for each, own in ruling.owners.items() if each not in addresses})


@pytest.mark.parametrize(
    ("cut", "now", "stands"),
    [
        (AWAY, THERE, True),
        (AWAY, without(NOW, DB), True),
        (AWAY, without(THERE, WEB), True),  # its object is gone, and its interface is not
        (AWAY, without(NOW, WEB), False),
        (HIDDEN, without(NOW, WEB), False),  # outside it was another address
        (LOCAL, without(NOW, WEB), False),
        (LOCAL, without(NOW, DB), False),
        (LOCAL, ruling(pod("db", "10.0.0.2", app="changed")), True),
        (LOCAL, ruling(pod("db", "10.0.0.2", container="another", app="db")), False),
        (LOCAL, replace(THERE, owners={**NOW.owners, DB: NOW.owners[WEB]}), False),
        (AWAY, ruling(pod("far", "10.0.9.9", app="far")), False),  # what was another host's is a pod of this one
        (PASSING, without(NOW, WEB, DB), True),
    ],
)
def test_a_fence_lasts_as_long_as_the_pods_that_it_is_for(cut: Flow, now: Ruling, stands: bool) -> None:
    fence = fenced(Cut(cut, "", DENIED))
    assert bool(fence.under(now).until) is stands
    found = Fence.found(fence.rules.elements, 0)
    assert bool(found.under(now).until) is stands, "one that was found knows as much"
    assert bool(fence.under(now).ends) is stands


def test_one_that_was_found_and_is_no_pods_is_a_hosts_or_goes() -> None:
    fence, hosts = fenced(Cut(PASSING, "", DENIED)), guarded_ruling()
    assert fence.of_pods(hosts) is fence
    assert not fence.of_pods(NOW).until, "without host endpoints nothing of that kind is cut"
    nobodys = fenced(Cut(flow("192.0.2.1", "10.0.0.2"), "", DENIED))
    assert not Fence(nobodys.until, dict.fromkeys(nobodys.ends)).of_pods(hosts).until, "in a block of the host's own"
    assert nobodys.of_pods(NOW) is nobodys

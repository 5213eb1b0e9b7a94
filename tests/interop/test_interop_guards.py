"""Guard rails: passwords, import filters, maxima, and what holds a session down. Refused, and visible."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bgp_world import block, until

from core.resources import Metadata, Secret
from tests.interop.rack import FAR4, FAR6, OWN4, OWN6, Rack, to_tor, to_tor6
from tests.interop.test_interop_export import bgp_filter
from tests.interop.tor import FOUR, NODE4, NODE6, SIX, TOR4, TOR6, Said

pytestmark = pytest.mark.kernel

FOREIGN = "192.0.2.0/24"


def secret(**data: str) -> Secret:
    return Secret(metadata=Metadata(name="bgp", namespace="kube-system"), string_data=data)


def key(name: str) -> dict[str, object]:
    return {"secretKeyRef": {"name": "bgp", "key": name}}


def test_passwords_right_wrong_and_changed(rack: Rack) -> None:
    rack.tor.configure(replace(FOUR, password="one"), replace(SIX, password="two"))
    both = to_tor(password=key("four")), to_tor6(password=key("six"))
    rack.apply(*both, secret(four="one", six="two"))
    rack.await_up(NODE4, TOR4)
    rack.await_up(NODE6, TOR6)
    rack.await_heard(OWN4)
    rack.await_heard(OWN6, node=NODE6)
    rack.apply(*both, secret(four="wrong", six="two"))
    rack.await_refused()
    assert rack.up(NODE6, TOR6)
    rack.apply(*both, secret(four="three", six="two"))
    rack.tor.configure(replace(FOUR, password="three"), replace(SIX, password="two"))
    rack.await_up(NODE4, TOR4)


def test_a_router_that_asks_for_a_password_we_have_none_for(rack: Rack) -> None:
    rack.tor.configure(replace(FOUR, password="one"))
    rack.apply(to_tor())
    rack.await_refused()


def test_a_missing_filter_or_secret_holds_the_session_down(rack: Rack) -> None:
    rack.tor.configure(FOUR)
    rack.apply(to_tor())
    rack.await_up()
    rack.apply(to_tor(filters=["absent"]))
    until("the status says which filter", lambda: "absent" in rack.reason())
    assert rack.agent.session(TOR4).state == "Blocked"
    until(f"{rack.kind} sees the session end", lambda: not rack.tor.session().up)
    rack.apply(to_tor(password=key("four")))
    until("the status says which Secret", lambda: "Secret bgp" in rack.reason())
    assert rack.agent.session(TOR4).state == "Blocked"
    assert not rack.tor.session().up
    rack.apply(to_tor(filters=["absent"]), bgp_filter("absent"))
    rack.await_up()


def test_import_filters_by_each_operator(rack: Rack) -> None:
    near, far, long = "10.244.16.0/26", "10.244.32.0/26", "10.244.16.64/28"
    rack.tor.configure(FOUR, SIX)
    rack.apply(to_tor(filters=["in"]), to_tor6(filters=["in"]), bgp_filter("in"))
    for prefix in (near, far, long, FAR6):
        rack.tor.announce(prefix)
    rack.await_learnt(near, far, long)
    rack.await_learnt(FAR6, version=6)
    for rule, left in (
        ({"cidr": near, "matchOperator": "Equal"}, {far, long}),
        ({"cidr": near, "matchOperator": "NotEqual"}, {near}),
        ({"cidr": "10.244.16.0/20", "matchOperator": "In"}, {far}),
        ({"cidr": "10.244.16.0/20", "matchOperator": "NotIn"}, {near, long}),
        ({"cidr": "10.244.0.0/16", "matchOperator": "In", "prefixLength": {"min": 27, "max": 32}}, {near, far}),
        ({"peerType": "eBGP"}, set()),
        ({"peerType": "iBGP"}, {near, far, long}),
    ):
        rejects = bgp_filter("in", importV4=[{"action": "Reject", **rule}])
        rack.apply(to_tor(filters=["in"]), to_tor6(filters=["in"]), rejects)
        rack.await_learnt(*left)
    rack.apply(
        to_tor(filters=["in"]),
        to_tor6(filters=["in"]),
        bgp_filter("in", importV6=[{"action": "Reject", "cidr": "fd44::/48", "matchOperator": "In"}]),
    )
    rack.await_learnt(version=6)
    assert rack.tor.session(NODE4).up
    assert rack.tor.session(NODE6).up


def test_import_filters_by_what_the_router_says(rack: Rack) -> None:
    standard, large, path = "10.244.16.0/26", "10.244.17.0/26", "10.244.18.0/26"
    rack.tor.configure(FOUR)
    rack.apply(to_tor())
    rack.await_up()
    rack.tor.announce(standard, Said(communities=("65001:3",)))
    rack.tor.announce(large, Said(communities=("65001:3:3",)))
    rack.tor.announce(path, Said(path=(65020, 65021)))
    rack.await_learnt(standard, large, path)
    for rule, left in (
        ({"communities": {"values": ["65001:3"]}}, {large, path}),
        ({"communities": {"values": ["65001:3:3"]}}, {standard, path}),
        ({"asPathPrefix": [65001, 65020]}, {standard, large}),
    ):
        rack.apply(to_tor(filters=["in"]), bgp_filter("in", importV4=[{"action": "Reject", **rule}]))
        rack.await_learnt(*left)


def test_a_filter_can_let_a_foreign_prefix_in(rack: Rack) -> None:
    rack.tor.configure(FOUR)
    rack.apply(to_tor())
    rack.await_up()
    rack.tor.announce(FOREIGN)
    rack.tor.announce(FAR4)
    rack.await_learnt(FAR4)
    accepts = bgp_filter("in", importV4=[{"action": "Accept", "cidr": FOREIGN, "matchOperator": "Equal"}])
    rack.apply(to_tor(filters=["in"]), accepts)
    rack.await_learnt(FAR4, FOREIGN)


def test_no_more_prefixes_than_the_router_may_tell(rack: Rack) -> None:
    rack.tor.configure(FOUR)
    rack.apply(to_tor(maxPrefixesIn=3))
    rack.await_up()
    for number in range(16, 22):
        rack.tor.announce(f"10.244.{number}.0/26")
    until("the status says how many were refused", lambda: "refused" in str(rack.agent.state.problems))
    assert len(rack.routes()) <= 3
    assert rack.agent.session(TOR4).received <= 3
    assert rack.up()
    rack.apply(to_tor(maxPrefixesIn=100))
    rack.await_learnt(*(f"10.244.{number}.0/26" for number in range(16, 22)))


def test_a_router_that_takes_fewer_prefixes_than_we_have(rack: Rack) -> None:
    rack.tor.configure(replace(FOUR, most_in=2))
    rack.apply(to_tor(), *(block(f"10.244.{number}.0/26", "n1") for number in range(2, 6)))
    until("the status says why the router ended it", lambda: "refix" in why(rack))
    rack.apply(to_tor())
    rack.tor.clear()
    rack.await_up()
    rack.await_heard(OWN4)


def why(rack: Rack) -> str:
    """The last that the status says of errors."""
    session = rack.agent.session(TOR4)
    return f"{session.reason} {session.last_error}"

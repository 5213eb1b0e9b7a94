"""ExaBGP 5.0.15's own words, and ours to it."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from bgp.attributes import Attributes, Origin, Path
from bgp.exabgp.line import (
    BATCH,
    Ack,
    Announce,
    EndOfRib,
    Event,
    Other,
    PeerDown,
    PeerOpen,
    PeerUp,
    Ping,
    Refresh,
    SendEndOfRib,
    Teardown,
    Update,
    Withdraw,
    batches,
    decode,
    encode,
)
from core.addr import Family
from core.prefix import Prefix

V4, V6 = ip_address("10.9.0.1"), ip_address("fd09::1")


def said(kind: str, rest: str, peer: str = "10.9.0.1") -> str:
    """A line as ExaBGP writes it."""
    return (
        '{ "exabgp": "5.0.0", "time": 1795256154.9, "host" : "h", "pid" : 6130, "ppid" : 1, "counter": 1, '
        f'"type": "{kind}", "neighbor": {{ "address": {{ "local": "10.9.0.2", "peer": "{peer}" }}, '
        f'"asn": {{ "local": 64512, "peer": 65001 }}, "router-id": "10.9.0.2" , {rest} }} }}'
    )


OPEN = (
    '"direction": "receive", "open": { "version": 4, "asn": 65001, "hold_time": 9, "router_id": "10.9.0.1", '
    '"capabilities": { "1": { "name": "multiprotocol", "families": [ "ipv4/unicast" ] }, "64": { "name": '
    '"graceful restart", "time": 120, "address-family-flags": { %s}, "restart-flags": [%s]  }%s } }'
)
OPENED = PeerOpen(V4, 120, frozenset(), hold_s=9, as_number=65001, router_id=IPv4Address("10.9.0.1"))
MORE = (
    ', "2": { "name": "route-refresh", "variant": "RFC" }, "65": { "name": "asn4", "asn4": 4200000001 }, '
    '"71": { "name": "unknown", "iana": "unassigned", "value": 71, "raw": "00020180000BB800010180000E10" }'
)
ATTRIBUTES = (
    '"attribute": { "origin": "igp", "as-path": {"0": {"element": "as-sequence", "value": [65001, 64513]}, '
    '"1": {"element": "as-set", "value": [1, 2]}}, "med": 50, "local-preference": 200, '
    '"community": [ [ 65001, 77 ] ], "large-community": [ [ 1, 2 , 3 ] ], '
    '"originator-id": "10.0.0.9", "cluster-list": [ "10.0.0.1", "10.0.0.2" ] }'
)
PATH = Path(
    next_hop=V4,
    as_path=(65001, 64513, 1, 2),
    as_path_length=3,
    origin=Origin.IGP,
    med=50,
    local_pref=200,
    communities=("65001:77", "1:2:3"),
    originator=IPv4Address("10.0.0.9"),
    clusters=(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")),
)
PLAIN = Path(next_hop=V6, as_path=(65001,), as_path_length=1)


def prefixes(*spelt: str) -> tuple[Prefix, ...]:
    return tuple(Prefix.of(ip_network(each)) for each in spelt)


CUT_OFF = said("update", '"message": { "update": { "withdraw": { "ipv4 unicast": [ { "packed": "180a" } ] } } }')
VECTORS: list[tuple[str, Event]] = [
    ("done", Ack(True)),
    ("error", Ack(False)),
    ("exabgp 5.0.15", Other("exabgp 5.0.15")),
    (said("state", '"state": "connected"'), Other("10.9.0.1 state connected")),
    (said("state", '"state": "up"'), PeerUp(V4)),
    (said("state", '"state": "up"', "fd09::1"), PeerUp(V6)),
    (
        said("state", '"state": "down", "reason": "notification received (6,2)"'),
        PeerDown(V4, "the peer sent Cease, Administrative Shutdown (6/2)", True),
    ),
    (
        said("state", '"state": "down", "reason": "notification sent (3,99)"'),
        PeerDown(V4, "we sent UPDATE Message Error (3/99)", True),
    ),
    (
        said("state", '"state": "down", "reason": "closing connection"'),
        PeerDown(V4, "the TCP connection was lost", False),
    ),
    (
        said("state", '"state": "down", "reason": "stop, message [removed]"'),
        PeerDown(V4, "its configuration was changed", False),
    ),
    (said("open", OPEN % ('"ipv4/unicast": [ ] ', "", "")), replace(OPENED, preserved=frozenset({Family.V4}))),
    (said("open", OPEN % ("", "", "")), OPENED),
    (
        said("open", OPEN % ('"ipv4/unicast": [ "restart" ] ', ' "forwarding" ', MORE)),
        replace(
            OPENED,
            preserved=frozenset({Family.V4}),
            kept=frozenset({Family.V4}),
            restarting=True,
            long_lived_s=3600,
            as_number=4200000001,
            four_byte_as=True,
            route_refresh=True,
        ),
    ),
    (
        said("update", '"direction": "receive", "message": { "eor": { "afi" : "ipv4", "safi" : "unicast" } }'),
        EndOfRib(V4),
    ),
    (
        said(
            "update",
            f'"direction": "receive", "message": {{ "update": {{ {ATTRIBUTES}, "announce": {{ "ipv4 unicast": '
            '{ "10.9.0.1": [ { "nlri": "10.244.5.0/26" }, { "nlri": "10.244.6.0/26" } ] } } } }',
        ),
        Update(V4, ((PATH, prefixes("10.244.5.0/26", "10.244.6.0/26")),)),
    ),
    (
        said(
            "update",
            '"direction": "receive", "message": { "update": { "attribute": { "origin": "igp", "as-path": {"0": '
            '{"element": "as-sequence", "value": [65001]}} }, "announce": { "ipv6 unicast": { "fd09::1": '
            '[ { "nlri": "fd44:5::/64" } ] } } } }',
            "fd09::1",
        ),
        Update(V6, ((PLAIN, prefixes("fd44:5::/64")),)),
    ),
    (
        said(
            "update",
            '"direction": "receive", "message": { "update": { "attribute": { "origin": "igp", "as-path": {"0": '
            '{"element": "as-sequence", "value": [65001]}} }, "announce": { "ipv6 unicast": { "fd09::1": '
            '[ { "nlri": "fd44:5::/64" } ], "fe80::1": [ { "nlri": "fd44:5::/64" } ] } } } }',
            "fd09::1",
        ),
        Update(V6, ((PLAIN, prefixes("fd44:5::/64")),)),
    ),
    (
        said(
            "update",
            '"direction": "receive", "message": { "update": { "withdraw": '
            '{ "ipv4 unicast": [ { "nlri": "10.244.6.0/26" } ] } } }',
        ),
        Update(V4, (), prefixes("10.244.6.0/26")),
    ),
    (  # as bgp.entry has ExaBGP say it
        said(
            "update",
            f'"direction": "receive", "message": {{ "update": {{ {ATTRIBUTES}, "announce": {{ "ipv4 unicast": '
            '{ "10.9.0.1": [ { "packed": "1a0af405001a0af40600" } ] } }, "withdraw": '
            '{ "ipv4 unicast": [ { "packed": "080b" } ] } } }',
        ),
        Update(V4, ((PATH, prefixes("10.244.5.0/26", "10.244.6.0/26")),), prefixes("11.0.0.0/8")),
    ),
    (
        said(
            "update",
            '"direction": "receive", "message": { "update": { "withdraw": '
            '{ "ipv6 unicast": [ { "packed": "40fd44000500000000" } ] } } }',
            "fd09::1",
        ),
        Update(V6, (), prefixes("fd44:5::/64")),
    ),
]


GOOD = '"origin": "igp", "as-path": {"0": {"element": "as-sequence", "value": [65001]}}'


@pytest.mark.parametrize(
    ("attributes", "next_hop"),
    [
        ('"origin": "igp"', "10.9.0.1"),
        ('"origin": "igp", "as-path": {"0": {"element": "as-sequence", "value": []}}', "10.9.0.1"),
        (GOOD.replace("igp", "7"), "10.9.0.1"),
        (GOOD.replace('"origin": "igp", ', ""), "10.9.0.1"),
        (GOOD, "null"),
        (GOOD, "fd09::1"),
        (GOOD, "224.0.0.5"),
    ],
)
def test_what_lacks_what_it_must_have_is_withdrawn(attributes: str, next_hop: str) -> None:
    text = (
        f'"direction": "receive", "message": {{ "update": {{ "attribute": {{ {attributes} }}, "announce": '
        f'{{ "ipv4 unicast": {{ "{next_hop}": [ {{ "nlri": "10.244.5.0/26" }} ] }} }} }} }}'
    )
    assert decode(said("update", text)) == Update(V4, (), (Prefix.parse("10.244.5.0/26"),))


def test_another_family_than_the_sessions_is_not_heard() -> None:
    text = (
        f'"direction": "receive", "message": {{ "update": {{ "attribute": {{ {GOOD} }}, "announce": '
        '{ "ipv6 unicast": { "fd09::1": [ { "nlri": "fd44::/64" } ] } } } }'
    )
    assert decode(said("update", text)) == Update(V4)


@pytest.mark.parametrize(("line", "event"), VECTORS)
def test_decode(line: str, event: Event) -> None:
    assert decode(line) == event


@pytest.mark.parametrize(
    "line", ["{", '{"neighbor": {}}', said("update", '"message": {}'), said("state", '"state": "down"'), CUT_OFF]
)
def test_what_is_not_understood_says_so(line: str) -> None:
    with pytest.raises(ValueError, match="we do not understand"):
        decode(line)


def test_another_message_of_its_is_no_event() -> None:
    text = json.dumps({"exabgp": "5.0.0", "type": "notification", "notification": "shutdown"})
    assert decode(text) == Other(text)


def test_encode() -> None:
    one, two = ip_network("10.1.0.0/26"), ip_network("10.1.0.64/26")
    assert encode(Announce((V4,), Attributes(), (one, two))) == (
        "neighbor 10.9.0.1 announce attributes next-hop self nlri 10.1.0.0/26 10.1.0.64/26"
    )
    assert encode(Withdraw((V4,), (one,))) == "neighbor 10.9.0.1 withdraw attributes next-hop self nlri 10.1.0.0/26"
    assert encode(SendEndOfRib(V6, Family.V6)) == "neighbor fd09::1 announce eor ipv6 unicast"
    assert encode(Refresh(V4, Family.V4)) == "neighbor 10.9.0.1 announce route-refresh ipv4 unicast"
    assert encode(Teardown(V6, 4)) == "neighbor fd09::1 teardown 4"
    assert encode(Ping()) == "version"


def test_encode_all_attributes() -> None:
    attributes = Attributes(
        next_hop=ip_address("10.9.0.7"),
        as_path=(64512, 64512, 4200000000),
        origin=Origin.INCOMPLETE,
        med=0,
        local_pref=200,
        communities=("64512:1", "64512:2", "64512:1:2"),
        originator=IPv4Address("10.0.0.9"),
        clusters=(IPv4Address("10.0.0.1"),),
    )
    assert encode(Announce((V4,), attributes, (ip_network("10.1.0.0/26"),))) == (
        "neighbor 10.9.0.1 announce attributes next-hop 10.9.0.7 origin incomplete as-path [ 64512 64512 4200000000 ] "
        "med 0 local-preference 200 community [ 64512:1 64512:2 ] large-community [ 64512:1:2 ] "
        "originator-id 10.0.0.9 cluster-list [ 10.0.0.1 ] nlri 10.1.0.0/26"
    )


def test_batches_lose_nothing() -> None:
    prefixes = [ip_network((0x0A000000 + 64 * number, 26)) for number in range(2 * BATCH + 1)]
    parts = list(batches(prefixes))
    assert [len(part) for part in parts] == [BATCH, BATCH, 1]
    assert [prefix for part in parts for prefix in part] == prefixes

"""The index of prefixes against a plain list of them."""

from __future__ import annotations

from ipaddress import ip_network
from random import Random

from core.addr import contains
from datastore.ipam.ranges import Ranges


def test_ranges_say_what_a_list_says() -> None:
    random = Random(7)
    ranges, plain = Ranges(), dict[str, str]()
    for number in range(600):
        start = random.choice(["10.0.0.0/24", "fd00::/120"])
        some = random.choice(list(ip_network(start).subnets(random.choice((1, 4, 6)))))
        name = f"{some}"
        if name in plain:
            ranges.remove(some, name)
            del plain[name]
        else:
            ranges.add(some, name)
            plain[name] = name
        probe = random.choice(list(ip_network(start).subnets(random.choice((0, 2, 4, 8)))))
        networks = [ip_network(each) for each in plain]
        assert sorted(ranges.around(probe)) == sorted(str(each) for each in networks if contains(each, probe))
        inside = sorted(str(each) for each in networks if contains(probe, each))
        assert sorted(ranges.within(probe)) == sorted(ranges.shuffled_within(probe, random)) == inside
        assert ranges.overlap(probe) == any(each.version == probe.version and each.overlaps(probe) for each in networks)
        mine = [each for each in networks if each.version == probe.version and each.overlaps(probe)]
        assert ranges.count(probe) == len(mine)
        assert ranges.count_within(probe) == sum(ip_network(each).num_addresses for each in inside)
        if number % 100 == 0 and len(inside) > 3:
            assert list(ranges.shuffled_within(probe, Random(1))) == list(ranges.shuffled_within(probe, Random(1)))
    for name in list(plain):
        ranges.remove(ip_network(name), name)
    assert not list(ranges.within(ip_network("0.0.0.0/0")))

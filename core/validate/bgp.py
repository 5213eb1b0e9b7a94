"""Rules for BGPConfiguration, BGPPeer and BGPFilter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Final

from core import values
from core.errors import Problem
from core.resources import BGPConfiguration, BGPFilter, BGPPeer
from core.resources.bgp import BGPConfigurationSpec, BGPFilterRule, BGPPeerSpec, FilterOperation, Password
from core.validate.checks import at_most, conflict, each, lasts, name, one_of, reads, selector, when_set, within

MOST_PRIORITY: Final = 2147483646

MOST_PREFIXES: Final = 2**31 - 1

LEAST_HOLD_S: Final = 3
"""Shorter hold times are refused by every router (RFC 4271, 4.2); 0 would never notice a loss."""

LONGEST_HOLD_S: Final = 2**16 - 1
LONGEST_STALE_S: Final = 2**24 - 1

BFD_INTERVALS_S: Final = (0.01, 60)
"""Bounds of the intervals between BFD packets."""

_WILD_INTERFACE: Final = re.compile(r"[a-zA-Z0-9_.*-]{1,15}")


def peer(given: BGPPeer) -> Iterator[Problem]:
    """A BGPPeer."""
    spec = given.spec
    yield from when_set("spec.node", spec.node, name)
    yield from selector("spec.nodeSelector", spec.node_selector)
    yield from selector("spec.peerSelector", spec.peer_selector)
    yield from selector("spec.localWorkloadSelector", spec.local_workload_selector)
    yield from when_set("spec.peerIP", spec.peer_ip, values.peer_address)
    yield from when_set("spec.asNumber", spec.as_number, values.as_number)
    yield from when_set("spec.localASNumber", spec.local_as_number, values.as_number)
    yield from _peer_scope(spec)
    yield from _reachable_by(spec)
    yield from one_of("spec.sourceAddress", spec.source_address, ("UseNodeIP", "None"))
    yield from one_of("spec.nextHopMode", spec.next_hop_mode, ("Auto", "Self", "Keep"))
    yield from one_of("spec.reversePeering", spec.reverse_peering, ("Auto", "Manual"))
    if spec.keep_original_next_hop and spec.next_hop_mode:
        yield conflict("spec.keepOriginalNextHop", "nextHopMode", "it is the older spelling of nextHopMode: Keep")
    yield from _times(spec)
    yield from within("spec.maxPrefixesIn", spec.max_prefixes_in, 1, MOST_PREFIXES)
    yield from within("spec.maxPrefixesOut", spec.max_prefixes_out, 1, MOST_PREFIXES)
    yield from _detection(spec)
    yield from within("spec.numAllowedLocalASNumbers", spec.num_allowed_local_as_numbers, 0, 2**31 - 1)
    yield from within("spec.ttlSecurity", spec.ttl_security, 0, 255)
    yield from each("spec.filters", spec.filters, name)
    yield from _password("spec.password", spec.password)


def _peer_scope(spec: BGPPeerSpec) -> Iterator[Problem]:
    numbered = spec.as_number not in (None, 0, "0", "")
    if spec.node and spec.node_selector:
        yield conflict("spec.node", "nodeSelector", "the one names a node, the other selects nodes")
    if spec.peer_ip and spec.peer_selector:
        yield conflict("spec.peerIP", "peerSelector", "the one is an address, the other selects nodes")
    if numbered and spec.peer_selector:
        yield conflict("spec.asNumber", "peerSelector", "each selected node has its own AS number")
    if spec.peer_ip and not numbered:
        yield Problem(path="spec.asNumber", why="is required with peerIP")
    if not (spec.peer_ip or spec.peer_selector or spec.local_workload_selector):
        yield Problem(path="spec", why="names nobody: peerIP, peerSelector or localWorkloadSelector is needed")
    mirrored = spec.peer_selector and spec.reverse_peering != "Manual"
    if spec.local_as_number and mirrored:
        why = "both ends would speak for it, and each expects the other's own; give the nodes their asNumber"
        yield conflict("spec.localASNumber", "peerSelector", why)
    if spec.passive and mirrored:
        yield conflict("spec.passive", "peerSelector", "both ends would wait; the nodes' addresses decide who calls")
    if not spec.local_workload_selector:
        return
    if not numbered:
        yield Problem(path="spec.asNumber", why="is required with localWorkloadSelector")
    if spec.peer_ip:
        yield conflict("spec.peerIP", "localWorkloadSelector")
    if spec.peer_selector:
        yield conflict("spec.peerSelector", "localWorkloadSelector")


def _times(spec: BGPPeerSpec) -> Iterator[Problem]:
    """BGP counts in whole seconds, in fields of 16 bits (RFC 4271, 4.2) and 24 (RFC 9494, 3.1)."""
    yield from when_set("spec.maxRestartTime", spec.max_restart_time, values.duration)
    yield from lasts("spec.longLivedRestartTime", spec.long_lived_restart_time, 0, LONGEST_STALE_S)
    wrong = [
        *lasts("spec.keepaliveTime", spec.keepalive_time, 1, LONGEST_HOLD_S // 3),
        *lasts("spec.holdTime", spec.hold_time, LEAST_HOLD_S, LONGEST_HOLD_S),
    ]
    yield from wrong
    if wrong or not spec.hold_time:
        return
    hold = values.duration(spec.hold_time)
    if hold != int(hold):
        yield Problem(path="spec.holdTime", why=f"{spec.hold_time} is not a whole number of seconds")
    elif spec.keepalive_time and hold < 3 * values.duration(spec.keepalive_time):
        why = f"{spec.hold_time} is less than three times keepaliveTime: one lost message would end the session"
        yield Problem(path="spec.holdTime", why=why)
    elif spec.keepalive_time and hold // 3 != values.duration(spec.keepalive_time):
        why = f"the speaker sends a keepalive every third of holdTime {spec.hold_time}; leave one of both out"
        yield Problem(path="spec.keepaliveTime", why=why)


def _detection(spec: BGPPeerSpec) -> Iterator[Problem]:
    modes = ("None", "BFDIfDirectlyConnected")
    yield from one_of("spec.failureDetectionMode", spec.failure_detection_mode, modes)
    if spec.bfd is None:
        return
    if spec.failure_detection_mode == "None":
        yield conflict("spec.bfd", "failureDetectionMode: None", "its presence turns BFD on")
    for field, interval in (
        ("minimumSendInterval", spec.bfd.minimum_send_interval),
        ("minimumRecvInterval", spec.bfd.minimum_recv_interval),
    ):
        if not interval:
            yield Problem(path=f"spec.bfd.{field}", why="is empty; leave it out for 300ms")
        yield from lasts(f"spec.bfd.{field}", interval, *BFD_INTERVALS_S)
    yield from within("spec.bfd.multiplier", spec.bfd.multiplier, 1, 255)


def _reachable_by(spec: BGPPeerSpec) -> Iterator[Problem]:
    if not spec.reachable_by:
        return
    if not spec.peer_ip:
        yield Problem(path="spec.reachableBy", why="needs a peerIP")
        return
    try:
        version = values.peer_address(spec.peer_ip)[0].version
    except ValueError:
        version = None  # told at peerIP
    yield from reads("spec.reachableBy", spec.reachable_by, partial(values.address, version=version))


def _password(path: str, secret: Password | None) -> Iterator[Problem]:
    if secret is None or secret.secret_key_ref is None:
        return
    if not secret.secret_key_ref.key:
        yield Problem(path=f"{path}.secretKeyRef.key", why="is required")
    if not secret.secret_key_ref.name:
        yield Problem(path=f"{path}.secretKeyRef.name", why="is required")
    yield from when_set(f"{path}.secretKeyRef.name", secret.secret_key_ref.name, name)


def configuration(given: BGPConfiguration) -> Iterator[Problem]:
    """A BGPConfiguration."""
    spec = given.spec
    levels = ("Debug", "Info", "Warning", "Error", "Fatal")
    yield from one_of("spec.logSeverityScreen", spec.log_severity_screen, levels)
    yield from when_set("spec.asNumber", spec.as_number, values.as_number)
    yield from within("spec.listenPort", spec.listen_port, 1, 65535)
    yield from one_of("spec.bindMode", spec.bind_mode, ("None", "NodeIP"))
    yield from _mesh(spec)
    for field, entries in (
        ("serviceClusterIPs", spec.service_cluster_ips),
        ("serviceExternalIPs", spec.service_external_ips),
        ("serviceLoadBalancerIPs", spec.service_load_balancer_ips),
    ):
        for index, entry in enumerate(entries):
            yield from when_set(f"spec.{field}[{index}].cidr", entry.cidr, values.network_or_address)
    aggregation = spec.service_load_balancer_aggregation
    yield from one_of("spec.serviceLoadBalancerAggregation", aggregation, ("Enabled", "Disabled"))
    yield from _communities(spec)
    yield from each("spec.ignoredInterfaces", spec.ignored_interfaces, _ignored_interface)
    local = "spec.localWorkloadPeeringIPV"
    yield from when_set(f"{local}4", spec.local_workload_peering_ipv4, partial(values.address, version=4))
    yield from when_set(f"{local}6", spec.local_workload_peering_ipv6, partial(values.address, version=6))
    routes = ("Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly")
    yield from one_of("spec.programClusterRoutes", spec.program_cluster_routes, routes)
    yield from within("spec.ipv4NormalRoutePriority", spec.ipv4_normal_route_priority, 1, MOST_PRIORITY)
    yield from within("spec.ipv6NormalRoutePriority", spec.ipv6_normal_route_priority, 1, MOST_PRIORITY)


def _mesh(spec: BGPConfigurationSpec) -> Iterator[Problem]:
    yield from when_set("spec.nodeMeshMaxRestartTime", spec.node_mesh_max_restart_time, values.duration)
    yield from _password("spec.nodeMeshPassword", spec.node_mesh_password)
    if spec.node_to_node_mesh_enabled is not False:
        return
    for field, value in (
        ("nodeMeshPassword", spec.node_mesh_password),
        ("nodeMeshMaxRestartTime", spec.node_mesh_max_restart_time),
    ):
        if value is not None:
            yield conflict(f"spec.{field}", "nodeToNodeMeshEnabled: false", "there is no mesh to use it")


def _communities(spec: BGPConfigurationSpec) -> Iterator[Problem]:
    yield from at_most("spec.communities", spec.communities, 500)
    yield from at_most("spec.prefixAdvertisements", spec.prefix_advertisements, 500)
    for index, each_community in enumerate(spec.communities):
        path = f"spec.communities[{index}]"
        if not each_community.name:
            yield Problem(path=f"{path}.name", why="is required")
        yield from when_set(f"{path}.name", each_community.name, name)
        yield from reads(f"{path}.value", each_community.value, values.community)
    if spec.communities and not spec.prefix_advertisements:
        yield Problem(path="spec.communities", why="are named but not used by any of prefixAdvertisements")
    names = {community.name for community in spec.communities}
    for index, advertisement in enumerate(spec.prefix_advertisements):
        path = f"spec.prefixAdvertisements[{index}]"
        if not advertisement.cidr:
            yield Problem(path=f"{path}.cidr", why="is required")
        yield from when_set(f"{path}.cidr", advertisement.cidr, values.network_or_address)
        if not advertisement.communities:
            yield Problem(path=f"{path}.communities", why="is required: names or values of communities")
        yield from at_most(f"{path}.communities", advertisement.communities, 50)
        yield from each(f"{path}.communities", advertisement.communities, partial(_named_or_value, names))


def _named_or_value(names: set[str], text: str) -> None:
    if text in names:
        return
    if ":" not in text:
        raise ValueError(f"{text!r} is neither a community of this object's communities nor a value aa:nn or aa:nn:mm")
    values.community(text)


def _ignored_interface(text: str) -> None:
    if text == "*":
        raise ValueError("'*' would ignore every interface")
    _wild_interface(text)


def _wild_interface(text: str) -> None:
    if not _WILD_INTERFACE.fullmatch(text):
        raise ValueError(f"{text!r} is not an interface pattern: at most 15 of a-z A-Z 0-9 _ . * -")


def bgp_filter(given: BGPFilter) -> Iterator[Problem]:
    """A BGPFilter."""
    spec = given.spec
    for field, version, rules in (
        ("importV4", 4, spec.import_v4),
        ("exportV4", 4, spec.export_v4),
        ("importV6", 6, spec.import_v6),
        ("exportV6", 6, spec.export_v6),
    ):
        for index, rule in enumerate(rules):
            yield from _filter_rule(f"spec.{field}[{index}]", version, rule)


def _filter_rule(path: str, version: int, rule: BGPFilterRule) -> Iterator[Problem]:
    yield from one_of(f"{path}.action", rule.action or "''", ("Accept", "Reject"))
    yield from when_set(f"{path}.cidr", rule.cidr, partial(values.network, version=version))
    yield from one_of(f"{path}.matchOperator", rule.match_operator, ("Equal", "NotEqual", "In", "NotIn"))
    if rule.cidr and not rule.match_operator:
        yield Problem(path=f"{path}.matchOperator", why="is required with cidr: Equal, NotEqual, In or NotIn")
    if rule.match_operator and not rule.cidr:
        yield Problem(path=f"{path}.cidr", why="is required with matchOperator")
    yield from _prefix_length(path, version, rule)
    yield from one_of(f"{path}.source", rule.source, ("RemotePeers",))
    yield from when_set(f"{path}.interface", rule.interface, _wild_interface)
    yield from one_of(f"{path}.peerType", rule.peer_type, ("eBGP", "iBGP"))
    if rule.communities is not None:
        if len(rule.communities.values) != 1:
            yield Problem(path=f"{path}.communities.values", why="holds exactly one community")
        yield from each(f"{path}.communities.values", rule.communities.values, values.community)
    yield from each(f"{path}.asPathPrefix", rule.as_path_prefix, values.as_number)
    yield from within(f"{path}.priority", rule.priority, 1, MOST_PRIORITY)
    yield from _operations(path, rule)


def _prefix_length(path: str, version: int, rule: BGPFilterRule) -> Iterator[Problem]:
    bounds, path = rule.prefix_length, f"{path}.prefixLength"
    if bounds is None:
        return
    longest = 32 if version == 4 else 128
    if not rule.cidr:
        yield Problem(path=path.replace("prefixLength", "cidr"), why="is required with prefixLength")
    wrong = [*within(f"{path}.min", bounds.min, 0, longest), *within(f"{path}.max", bounds.max, 0, longest)]
    yield from wrong
    if bounds.min is not None and bounds.max is not None and bounds.min > bounds.max:
        yield Problem(path=f"{path}.min", why=f"{bounds.min} is above max {bounds.max}: nothing would match")
    elif rule.match_operator in ("Equal", "NotEqual"):
        why = f"bounds In and NotIn; {rule.match_operator} has the cidr's own length"
        yield Problem(path=path, why=why)
    elif bounds.max is not None and not wrong and bounds.max < _length(rule.cidr):
        yield Problem(path=f"{path}.max", why=f"nothing inside {rule.cidr} is as short as /{bounds.max}")


def _length(cidr: str) -> int:
    """The prefix length; 0 for what is no prefix, which is told elsewhere."""
    try:
        return values.network(cidr).prefixlen
    except ValueError:
        return 0


def _tellable_as(value: int | str) -> None:
    if values.as_number(value) == 0:
        raise ValueError("AS 0 must not be told to anybody (RFC 7607)")


def _operations(path: str, rule: BGPFilterRule) -> Iterator[Problem]:
    if rule.operations and rule.action != "Accept":
        yield Problem(path=f"{path}.operations", why="are for rules that Accept: a rejected route is not changed")
    yield from at_most(f"{path}.operations", rule.operations, 10)
    for index, operation in enumerate(rule.operations):
        yield from _operation(f"{path}.operations[{index}]", operation)


def _operation(path: str, operation: FilterOperation) -> Iterator[Problem]:
    given = (
        operation.add_community,
        operation.prepend_as_path,
        operation.set_priority,
        operation.set_local_preference,
    )
    if sum(value is not None for value in given) != 1:
        yield Problem(path=path, why="sets exactly one of addCommunity, prependASPath, setPriority, setLocalPreference")
    if operation.add_community is not None:
        yield from reads(f"{path}.addCommunity.value", operation.add_community.value, values.community)
    if operation.prepend_as_path is not None:
        numbers = operation.prepend_as_path.prefix
        if not numbers:
            yield Problem(path=f"{path}.prependASPath.prefix", why="names no AS number")
        yield from at_most(f"{path}.prependASPath.prefix", numbers, 10)
        yield from each(f"{path}.prependASPath.prefix", numbers, _tellable_as)
    if operation.set_priority is not None:
        yield from within(f"{path}.setPriority.value", operation.set_priority.value, 1, MOST_PRIORITY)
    if operation.set_local_preference is not None:
        yield from within(f"{path}.setLocalPreference.value", operation.set_local_preference.value, 0, 2**32 - 1)

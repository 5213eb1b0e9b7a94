"""Which columns `get` shows for each kind: pure look-ups from a resource to text.

A kind without columns of its own shows its name and age. Columns marked wide show under `-o wide` only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from core.names import Kind
from core.resources import (
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
    BGPConfiguration,
    BGPPeer,
    BlockAffinity,
    CalicoNodeStatus,
    ClusterNetworkPolicy,
    EndpointSlice,
    GlobalNetworkPolicy,
    HostEndpoint,
    IPAMBlock,
    IPAMConfiguration,
    IPAMHandle,
    IPAMRecord,
    IPPool,
    IPReservation,
    KubernetesNetworkPolicy,
    NetworkPolicy,
    Node,
    Pod,
    Secret,
    Service,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
    WorkloadEndpoint,
)
from core.resources.admin import Subject
from core.resources.ipam import HandleSpec, RecordSpec
from datastore.ipam.balancing import ingress


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading and how to read its text from a resource of the kind."""

    title: str
    text: Callable[[Any], str]
    wide: bool = False


def _types(given: Sequence[str] | None) -> str:
    return "(inferred)" if given is None else ",".join(given)


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items())) or "(all)"


def _encapsulation(pool: IPPool) -> str:
    modes = (("ipip", pool.spec.ipip_mode), ("vxlan", pool.spec.vxlan_mode))
    return ", ".join(f"{name} {mode}" for name, mode in modes if mode != "Never") or "Never"


def _pool_state(pool: IPPool) -> str:
    return "Terminating" if pool.terminating else "disabled" if pool.spec.disabled else "enabled"


def whose(spec: HandleSpec | RecordSpec) -> str:
    """For which pod or Service an address is, or was."""
    if spec.service:
        return f"Service {spec.namespace}/{spec.service}"
    return f"{spec.namespace}/{spec.pod}" if spec.pod else "-"


def _peers_of(peer: BGPPeer) -> str:
    return peer.spec.node or peer.spec.node_selector or "(all nodes)"


def _subject(subject: Subject) -> str:
    if subject.pods is not None:
        selectors = (subject.pods.namespace_selector, subject.pods.pod_selector)
        return " / ".join(_labels(each.match_labels) for each in selectors)
    return _labels(subject.namespaces.match_labels) if subject.namespaces is not None else ""


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _any(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


_POLICY: Final = (
    Column("TIER", lambda policy: policy.spec.tier or "default"),
    Column("ORDER", lambda policy: _any(policy.spec.order)),
    Column("SELECTOR", lambda policy: policy.spec.selector or "all()"),
    Column("TYPES", lambda policy: _types(policy.spec.types), wide=True),
    Column("INGRESS", lambda policy: str(len(policy.spec.ingress or ())), wide=True),
    Column("EGRESS", lambda policy: str(len(policy.spec.egress or ())), wide=True),
)

_STAGED: Final = Column("ACTION", lambda policy: policy.spec.staged_action)

_KUBERNETES: Final = (
    Column("POD SELECTOR", lambda policy: _labels(policy.spec.pod_selector.match_labels)),
    Column("TYPES", lambda policy: _types(policy.spec.policy_types)),
)

_SUBJECT: Final = (
    Column("SUBJECT", lambda policy: _subject(policy.spec.subject)),
    Column("INGRESS", lambda policy: str(len(policy.spec.ingress)), wide=True),
    Column("EGRESS", lambda policy: str(len(policy.spec.egress)), wide=True),
)

COLUMNS: Final[Mapping[Kind, tuple[Column, ...]]] = MappingProxyType(
    {
        IPPool.KIND: (
            Column("CIDR", lambda pool: pool.spec.cidr),
            Column("ENCAPSULATION", _encapsulation),
            Column("NAT", lambda pool: _yes(pool.spec.nat_outgoing)),
            Column("STATE", _pool_state),
            Column("BLOCK", lambda pool: f"/{pool.spec.block_length}", wide=True),
            Column("NODES", lambda pool: pool.spec.node_selector or "all()", wide=True),
            Column("NAMESPACES", lambda pool: pool.spec.namespace_selector or "all()", wide=True),
            Column("USES", lambda pool: ",".join(pool.spec.allowed_uses) or "Workload,Tunnel", wide=True),
            Column("ASSIGNMENT", lambda pool: pool.spec.assignment_mode or "Automatic", wide=True),
        ),
        IPAMBlock.KIND: (
            Column("CIDR", lambda block: block.spec.cidr),
            Column("NODE", lambda block: block.spec.owner),
            Column("IN USE", lambda block: str(len(block.spec.allocations))),
            Column("BORROWED", lambda block: str(len(block.spec.borrowers)), wide=True),
            Column("FREED", lambda block: str(len(block.spec.freed)), wide=True),
        ),
        BlockAffinity.KIND: (
            Column("NODE", lambda affinity: affinity.spec.owner),
            Column("CIDR", lambda affinity: affinity.spec.cidr),
            Column("STATE", lambda affinity: affinity.spec.state),
        ),
        IPAMHandle.KIND: (
            Column("NODE", lambda handle: handle.spec.node),
            Column("POD", lambda handle: whose(handle.spec)),
            Column("ADDRESSES", lambda handle: ",".join(handle.spec.addresses)),
            Column("SINCE", lambda handle: handle.spec.since),
            Column("CONTAINER", lambda handle: handle.spec.container, wide=True),
        ),
        IPReservation.KIND: (Column("CIDRS", lambda given: ",".join(given.spec.reserved_cidrs)),),
        IPAMConfiguration.KIND: (
            Column("STRICT AFFINITY", lambda given: _yes(given.spec.strict_affinity)),
            Column("AUTO ALLOCATE", lambda given: _yes(given.spec.auto_allocate_blocks)),
            Column("BLOCKS PER HOST", lambda given: str(given.spec.most_blocks)),
            Column("COOLDOWN", lambda given: f"{given.spec.ip_cooldown_seconds}s"),
        ),
        IPAMRecord.KIND: (
            Column("ADDRESS", lambda record: record.spec.address),
            Column("NODE", lambda record: record.spec.node),
            Column("POD", lambda record: whose(record.spec)),
            Column("SINCE", lambda record: record.spec.since),
            Column("UNTIL", lambda record: record.spec.until),
            Column("WHY", lambda record: record.spec.why),
            Column("HANDLE", lambda record: record.spec.handle_id, wide=True),
        ),
        Pod.KIND: (
            Column("SERVICE ACCOUNT", lambda pod: pod.service_account),
            Column("LABELS", lambda pod: _labels(pod.metadata.labels), wide=True),
        ),
        Node.KIND: (
            Column("IPV4", lambda node: _any(node.address(4))),
            Column("IPV6", lambda node: _any(node.address(6))),
            Column("AS", lambda node: _any(node.spec.bgp.as_number if node.spec.bgp else None)),
            Column("TUNNEL", lambda node: _any(node.spec.bgp.tunnel_address if node.spec.bgp else None), wide=True),
            Column("LABELS", lambda node: _labels(node.metadata.labels), wide=True),
        ),
        BGPPeer.KIND: (
            Column("NODES", _peers_of),
            Column("PEER", lambda peer: peer.spec.peer_ip or peer.spec.peer_selector),
            Column("AS", lambda peer: _any(peer.spec.as_number)),
            Column("FILTERS", lambda peer: ",".join(peer.spec.filters), wide=True),
        ),
        BGPConfiguration.KIND: (
            Column("AS", lambda config: _any(config.spec.as_number)),
            Column("MESH", lambda config: _yes(config.spec.node_to_node_mesh_enabled is not False)),
        ),
        WorkloadEndpoint.KIND: (
            Column("POD", lambda endpoint: endpoint.spec.pod),
            Column("NODE", lambda endpoint: endpoint.spec.node),
            Column("ADDRESSES", lambda endpoint: ",".join(map(str, endpoint.spec.addresses))),
            Column("INTERFACE", lambda endpoint: endpoint.spec.interface_name, wide=True),
            Column("LABELS", lambda endpoint: _labels(endpoint.metadata.labels), wide=True),
        ),
        HostEndpoint.KIND: (
            Column("NODE", lambda endpoint: endpoint.spec.node),
            Column("INTERFACE", lambda endpoint: endpoint.spec.interface_name),
            Column("ADDRESSES", lambda endpoint: ",".join(endpoint.spec.expected_ips)),
        ),
        Tier.KIND: (
            Column("ORDER", lambda tier: _any(tier.spec.order)),
            Column("DEFAULT ACTION", lambda tier: _any(tier.spec.default_action) or "Deny"),
        ),
        NetworkPolicy.KIND: _POLICY,
        GlobalNetworkPolicy.KIND: _POLICY,
        KubernetesNetworkPolicy.KIND: _KUBERNETES,
        StagedNetworkPolicy.KIND: (_STAGED, *_POLICY),
        StagedGlobalNetworkPolicy.KIND: (_STAGED, *_POLICY),
        StagedKubernetesNetworkPolicy.KIND: (_STAGED, *_KUBERNETES),
        AdminNetworkPolicy.KIND: (Column("PRIORITY", lambda policy: str(policy.spec.priority)), *_SUBJECT),
        BaselineAdminNetworkPolicy.KIND: _SUBJECT,
        ClusterNetworkPolicy.KIND: (
            Column("TIER", lambda policy: policy.spec.tier),
            Column("PRIORITY", lambda policy: str(policy.spec.priority)),
            *_SUBJECT,
        ),
        Service.KIND: (
            Column("TYPE", lambda service: service.spec.type),
            Column("ADDRESS", lambda service: service.spec.cluster_ip),
            Column("EXTERNAL", lambda service: ",".join(map(str, ingress.addresses(service)))),
            Column("PORTS", lambda service: ",".join(f"{each.port}/{each.protocol}" for each in service.spec.ports)),
        ),
        Secret.KIND: (
            Column("TYPE", lambda secret: secret.type),
            Column("KEYS", lambda secret: ",".join(sorted(secret.data))),
        ),
        CalicoNodeStatus.KIND: (
            Column("NODE", lambda given: given.spec.node),
            Column("CLASSES", lambda given: ",".join(given.spec.classes)),
            Column("UPDATED", lambda given: given.status.last_updated if given.status else ""),
        ),
        EndpointSlice.KIND: (
            Column("SERVICE", lambda given: given.service),
            Column("READY", lambda given: str(sum(endpoint.ready for endpoint in given.endpoints))),
            Column("PORTS", lambda given: ",".join(f"{_any(each.port)}/{each.protocol}" for each in given.ports)),
        ),
    }
)

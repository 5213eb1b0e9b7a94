"""What this machine lets us do: rights, tools and kernel features, asked before work begins.

Each answer that is no comes as one sentence that says what to install or run.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from core.errors import Unsupported
from linux import interfaces
from linux.libnftables import Nft, NftRefused
from linux.netlink import Netlink, Refused
from linux.netns import scratch_namespace
from linux.tunnels import NO_IPIP

_CAP_NET_ADMIN: Final = 12
_PACKAGES: Final = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux", "tcpdump": "tcpdump"}


def require_net_admin() -> None:
    """Raise `Unsupported` unless this process may change the network."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1:
            return
    raise Unsupported("muslin changes routes and nftables and needs the right CAP_NET_ADMIN; run it as root")


def require_tools(names: Sequence[str]) -> None:
    """Raise `Unsupported` for the first of these commands that is not installed."""
    for name in names:
        if shutil.which(name) is None:
            package = _PACKAGES.get(name, name)
            raise Unsupported(f"there is no `{name}` command on this machine; install it: apt-get install {package}")


def require_nftables() -> None:
    """Raise `Unsupported` unless libnftables is installed and the kernel has nf_tables."""
    nft = Nft()
    try:
        nft.ask("list tables inet")
    except NftRefused as refusal:
        raise Unsupported(f"this kernel has no nftables, or we may not use it: {refusal}") from refusal
    finally:
        nft.close()


def has_ipip() -> bool:
    """Whether the kernel can make ipip devices. Tried in a namespace that goes away again; raises OSError if it cannot
    be tried."""
    with ThreadPoolExecutor(max_workers=1) as pool:  # the caller's own thread stays where it is
        return pool.submit(_probe_ipip).result()


def _probe_ipip() -> bool:
    with scratch_namespace(), Netlink() as netlink:
        try:
            interfaces.add_link(netlink, "probe", "ipip")
        except Refused as refusal:
            if refusal.errno in NO_IPIP:
                return False
            if refusal.errno != errno.EEXIST:  # as tunl0, which came with the module, is such a device already
                raise
        return True

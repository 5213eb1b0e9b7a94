"""What the named counters of an nftables table have counted, by one dump: some 2 microseconds a counter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.names import NFT_TABLE
from linux.nfnetlink import Nfnetlink
from linux.nft_wire import counted, dump_counters


@dataclass(frozen=True, slots=True, order=True)
class Counted:
    """What one counter says, since it was made. It never runs backwards while it lives."""

    packets: int
    bytes: int


class CounterReader:
    """Reads the counters of `table` in the network namespace of the thread that makes it."""

    def __init__(self, table: str = NFT_TABLE) -> None:
        self._dump = dump_counters(table)
        self._netlink = Nfnetlink()

    def close(self) -> None:
        """Close the socket; doing so twice is harmless."""
        self._netlink.close()

    def read(self) -> Mapping[str, Counted]:
        """Every counter by name; none where there is no table. Raises OSError when the kernel does not say.

        Blocks for as long as the dump takes. Each count is exact for its own moment; they are not of one moment.
        """
        found = {}
        for body in self._netlink.dump(*self._dump):
            name, packets, size = counted(body)
            found[name] = Counted(packets, size)
        return found


def read_counters(table: str = NFT_TABLE) -> Mapping[str, Counted]:
    """`CounterReader.read`, once."""
    reader = CounterReader(table)
    try:
        return reader.read()
    finally:
        reader.close()

"""What went over the InfiniBand adapters of this node, as the kernel counts it.

NCCL takes TCP without a word where it cannot have InfiniBand, and nothing in PyTorch says which of
the two it took. That the adapters stand still while ranks exchange gradients does.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SYSFS = Path("/sys/class/infiniband")
_COUNTERS = {"sent": "port_xmit_data", "received": "port_rcv_data"}
# They count words of four octets (Linux, Documentation/ABI/stable/sysfs-class-infiniband).
_OCTETS = 4


class Traffic(NamedTuple):
    """Bytes of one direction of a port, since its counter was last reset.

    Attributes
    ----------
    device : such as "mlx5_0"
    port : its number, from 1
    direction : "sent" or "received"
    num_bytes : of all that use the adapter, storage among them
    """

    device: str
    port: str
    direction: str
    num_bytes: int


def traffic(root: Path = SYSFS) -> Iterator[Traffic]:
    """Read every counter that this process may see; none where there is no adapter.

    Parameters
    ----------
    root : folder of the adapters
    """
    for folder in sorted(root.glob("*/ports/*/counters")):
        port = folder.parent
        for direction, name in _COUNTERS.items():
            try:
                words = int((folder / name).read_text())
            except (OSError, ValueError):  # a port that has no such counter, or is just going
                continue
            yield Traffic(port.parents[1].name, port.name, direction, _OCTETS * words)

"""Counters of adapters, as the kernel lays them out, down to what Prometheus gets."""

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from ganbert.exporter import InfiniBandCollector
from ganbert.infiniband import traffic


def adapter(root: Path, device: str, port: int = 1, **counters: object) -> None:
    """As the kernel has it: what stands in class/ is a link to the device."""
    folder = root.parent / f"{root.name}-devices" / device / "ports" / str(port) / "counters"
    folder.mkdir(parents=True)
    root.mkdir(exist_ok=True)
    (root / device).symlink_to(folder.parents[2])
    for name, value in counters.items():
        (folder / name).write_text(f"{value}\n")


def served(root: Path) -> str:
    registry = CollectorRegistry()
    registry.register(InfiniBandCollector(root))
    return generate_latest(registry).decode()


def test_words_become_bytes_of_each_port(tmp_path: Path) -> None:
    adapter(tmp_path, "mlx5_0", port_xmit_data=100, port_rcv_data=7, port_xmit_packets=3)
    adapter(tmp_path, "mlx5_1", port=2, port_xmit_data=1, port_rcv_data=0)
    assert [tuple(one) for one in traffic(tmp_path)] == [
        ("mlx5_0", "1", "sent", 400),
        ("mlx5_0", "1", "received", 28),
        ("mlx5_1", "2", "sent", 4),
        ("mlx5_1", "2", "received", 0),
    ]
    line = 'ganbert_infiniband_bytes_total{device="mlx5_0",direction="sent",port="1"} 400.0'
    assert line in served(tmp_path)


def test_a_counter_that_grows_is_read_at_each_scrape(tmp_path: Path) -> None:
    adapter(tmp_path, "mlx5_0", port_xmit_data=1)
    registry = CollectorRegistry()
    registry.register(InfiniBandCollector(tmp_path))
    labels = {"device": "mlx5_0", "port": "1", "direction": "sent"}
    assert registry.get_sample_value("ganbert_infiniband_bytes_total", labels) == 4
    (tmp_path / "mlx5_0/ports/1/counters/port_xmit_data").write_text(f"{2**40}\n")
    assert registry.get_sample_value("ganbert_infiniband_bytes_total", labels) == 4 * 2**40


def test_what_is_not_there_has_no_series(tmp_path: Path) -> None:
    assert list(traffic(tmp_path / "missing")) == []
    assert "ganbert" not in served(tmp_path)
    adapter(tmp_path, "mlx5_0", port_xmit_data="N/A (not supported)")
    assert "ganbert" not in served(tmp_path)

"""base/scripts/hostfile.sh: the hosts that DeepSpeed reads, and what it refuses to begin with."""

import os
import subprocess
from pathlib import Path

import pytest
from deepspeed.launcher.runner import fetch_hostfile

from .test_scripts import SCRIPTS, refused, run


def hostfile(folder: Path, **changed: object) -> subprocess.CompletedProcess[str]:
    """Run it where numbers are names: 127.0.0.K leads to itself."""
    environment = {
        "GANBERT_NODES": 8, "GANBERT_SLOTS": 8, "GANBERT_HOSTS": "127.0.1.INDEX",
        "HOSTNAME": "127.0.1.3", "POD_IP": "127.0.1.3", "GANBERT_HOSTFILE": folder / "hostfile",
    } | changed  # fmt: skip
    return run(SCRIPTS / "hostfile.sh", **environment)


@pytest.mark.parametrize(("nodes", "slots"), [(8, 8), (1, 8), (12, 4)])
def test_hostfile_is_read_by_deepspeed(tmp_path: Path, nodes: int, slots: int) -> None:
    done = hostfile(tmp_path, GANBERT_NODES=nodes, GANBERT_SLOTS=slots)
    assert done.returncode == 0, done.stderr
    found = fetch_hostfile(tmp_path / "hostfile")
    assert list(found.items()) == [(f"127.0.1.{k}", slots) for k in range(nodes)]
    assert sum(found.values()) == nodes * slots  # the ranks


@pytest.mark.parametrize("number", ["", "0", "-1", "eight", "8.0"])
@pytest.mark.parametrize("name", ["GANBERT_NODES", "GANBERT_SLOTS"])
def test_hostfile_wants_numbers(tmp_path: Path, name: str, number: str) -> None:
    assert name in refused(hostfile(tmp_path, **{name: number}))
    assert not (tmp_path / "hostfile").exists()


@pytest.mark.parametrize("name", ["GANBERT_HOSTS", "POD_IP"])
def test_hostfile_wants_its_variables(tmp_path: Path, name: str) -> None:
    assert f"{name}: " in refused(hostfile(tmp_path, **{name: ""}))
    assert not (tmp_path / "hostfile").exists()


def test_a_hostfile_that_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    place = tmp_path / "nowhere" / "hostfile"
    assert str(place) in refused(hostfile(tmp_path, GANBERT_HOSTFILE=place))


def test_own_name_that_leads_to_loopback_is_refused(tmp_path: Path) -> None:
    """The trap: gloo then dials 127.0.0.1 and the job never forms."""
    line = refused(hostfile(tmp_path, HOSTNAME="localhost", POD_IP="10.0.0.7"))
    assert "10.0.0.7" in line
    assert "localhost" in line


@pytest.mark.parametrize(
    ("addresses", "is_refused"),
    [
        (
            ("fd00::7", "10.0.0.7"),
            False,
        ),  # /etc/hosts of a pod with both families; glibc: IPv6 first
        (("10.0.0.7", "fd00::7"), False),
        (("fd00::7", "10.0.0.70"), True),
        (("127.0.1.1", "10.0.0.7"), True),
        (("::1", "10.0.0.7"), True),
    ],
)
def test_one_of_two_families_is_the_pods_address(
    tmp_path: Path, addresses: tuple[str, str], is_refused: bool
) -> None:
    """The trap: in a cluster with IPv4 and IPv6 the first address is not status.podIP."""
    getent = tmp_path / "bin" / "getent"
    getent.parent.mkdir()
    lines = [f"{one} {kind}" for one in addresses for kind in ("STREAM", "DGRAM", "RAW")]
    getent.write_text("#!/bin/sh\n" + "".join(f"echo {line}\n" for line in lines))
    getent.chmod(0o755)
    path = f"{getent.parent}:{os.environ['PATH']}"
    done = hostfile(tmp_path, HOSTNAME="ganbert-train-3", POD_IP="10.0.0.7", PATH=path)
    if is_refused:
        assert " ".join(addresses) in refused(done)
    else:
        assert done.returncode == 0, done.stderr


def test_own_name_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    assert "found ''" in refused(hostfile(tmp_path, HOSTNAME="nowhere.invalid"))

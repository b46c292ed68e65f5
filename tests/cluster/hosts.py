"""Hosts on one machine: network namespaces on a bridge, each with a name, an address and sshd.

A host has its own network, host name, /etc/hosts and /etc/ssh (`ip netns exec` puts what lies in
/etc/netns/NAME over /etc, for what runs inside alone), so nothing of the machine's own ssh is read
or written. Files are shared by all of them, as on a cluster with one file system. All that is made
here is named after the process, and is gone at the end, also after a failure.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

_NEEDED = ("ip", "sshd", "ssh", "ssh-keygen", "pdsh", "unshare", "hostname")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing() -> str | None:
    """Say why there can be no hosts here, or None."""
    if os.geteuid() != 0:
        return "hosts made of network namespaces need root"
    lacking = [name for name in _NEEDED if shutil.which(name, path=_PATH) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)} (iproute2, openssh-server, pdsh)"
    return _forbidden()


def _forbidden() -> str | None:
    """Say what of a host the kernel does not let us make, or None."""
    probe = f"g{os.getpid():07d}sw"
    try:
        _ip("netns", "add", probe)
        _ip("-n", probe, "link", "add", "br0", "type", "bridge")
        _ip("-n", probe, "link", "add", "one", "type", "veth", "peer", "name", "two")
        _ip("netns", "exec", probe, "unshare", "--uts", "hostname", "probe")
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        return f"no right to make network namespaces here: {said}"
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return None


def _ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


class Cluster:
    """The hosts; see `cluster`.

    Attributes
    ----------
    names : host names, in the order of their ranks
    addresses : IPv4, in the same order
    """

    def __init__(self, folder: Path, num_hosts: int) -> None:
        self._folder, self._prefix = (
            folder,
            f"g{os.getpid():07d}",
        )  # a process number has at most seven digits
        self._subnet = f"10.213.{os.getpid() % 250}"
        self._switch = f"{self._prefix}sw"
        self.names = [f"dgx{k}" for k in range(num_hosts)]
        self.addresses = [f"{self._subnet}.{k + 1}" for k in range(num_hosts)]

    def _space(self, host: int) -> str:
        return f"{self._prefix}n{host}"

    def command(self, host: int, *words: object) -> list[str]:
        """Return `words` as a command that runs on a host."""
        named = f'hostname {self.names[host]} && exec "$@"'
        inside = ["unshare", "--uts", "sh", "-c", named, "sh", *map(str, words)]
        return ["ip", "netns", "exec", self._space(host), *inside]

    def start(
        self, host: int, *words: object, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on a host, in a process group of its own."""
        return subprocess.Popen(
            self.command(host, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PATH": _PATH, **(environment or {})}, start_new_session=True,
        )  # fmt: skip

    def run(self, host: int, *words: object) -> str:
        """Return what a command prints on a host."""
        done = subprocess.run(
            self.command(host, *words), capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def cut_off(self, host: int) -> None:
        """Take a host off the network without a word: its cable is pulled."""
        _ip("-n", self._switch, "link", "set", f"{self._prefix}s{host}", "down")

    def reconnect(self, host: int) -> None:
        """Plug the cable in again."""
        _ip("-n", self._switch, "link", "set", f"{self._prefix}s{host}", "up")

    def processes(self, host: int) -> list[int]:
        """Process numbers, as seen from here, of all that runs on a host but its sshd."""
        words = subprocess.run(
            ["ip", "netns", "pids", self._space(host)], capture_output=True, text=True, check=True
        ).stdout.split()
        found = []
        for word in words:
            with contextlib.suppress(OSError):
                comm = Path(f"/proc/{word}/comm").read_text().strip()
                # "sshd-session" and the like: the sshd of newer distributions.
                if not comm.startswith("sshd") and comm != "unshare":
                    found.append(int(word))
        return found

    def hostfile(self) -> Path:
        """Return DeepSpeed's list of hosts, a slot each."""
        file = self._folder / "hostfile"
        file.write_text("".join(f"{name} slots=1\n" for name in self.names))
        return file

    def build(self) -> None:
        """Make the network, then the hosts."""
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        key = self._folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        hosts = "127.0.0.1 localhost\n" + "".join(
            f"{address} {name}\n" for address, name in zip(self.addresses, self.names, strict=True)
        )
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks itself in
        for host in range(len(self.names)):
            self._build_host(host, hosts, key)

    def _build_host(self, host: int, hosts: str, key: Path) -> None:
        space, inner, outer = (f"{self._prefix}{letter}{host}" for letter in "nhs")
        own = Path("/etc/netns", space)
        (own / "ssh").mkdir(parents=True)
        (own / "hosts").write_text(hosts)
        (own / "hostname").write_text(self.names[host] + "\n")
        (own / "ssh" / "ssh_config").write_text(
            f"IdentityFile {key}\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
            "BatchMode yes\nLogLevel ERROR\n"
        )
        (own / "ssh" / "sshd_config").write_text(
            f"ListenAddress {self.addresses[host]}\nHostKey {key}\nAuthorizedKeysFile {key}.pub\n"
            "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nMaxStartups 64\n"
        )
        _ip("netns", "add", space)
        _ip("-n", self._switch, "link", "add", outer, "type", "veth", "peer", "name", inner)
        _ip("-n", self._switch, "link", "set", inner, "netns", space)
        _ip("-n", self._switch, "link", "set", outer, "master", "br0", "up")
        _ip("-n", space, "addr", "add", f"{self.addresses[host]}/24", "dev", inner)
        _ip("-n", space, "link", "set", inner, "up")
        _ip("-n", space, "link", "set", "lo", "up")
        self._ssh_daemon(host)

    def _ssh_daemon(self, host: int) -> None:
        sshd = shutil.which("sshd", path=_PATH)
        log = (self._folder / f"sshd-{host}.log").open("w")
        with log:
            # With process numbers of its own: on SIGTERM, DeepSpeed over pdsh ends every
            # launcher that `pkill` finds on a host.
            alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
            subprocess.Popen(
                self.command(host, *alone, sshd, "-D", "-e"), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def wait_for_ssh(self) -> None:
        """Return when each host answers to its name."""
        deadline = time.monotonic() + 30
        for name in self.names:
            while (said := self._name_over_ssh(name)) != name:
                assert time.monotonic() < deadline, f"{name} answers: {said}"
                time.sleep(0.2)

    def _name_over_ssh(self, name: str) -> str:
        command = self.command(0, "ssh", name, "hostname")
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout.strip() or done.stderr.strip()

    def remove(self) -> None:
        """End what still runs on the hosts, and take them down."""
        for space in [*(self._space(host) for host in range(len(self.names))), self._switch]:
            _remove_space(space)
        with contextlib.suppress(OSError):
            Path("/etc/netns").rmdir()  # unless others have hosts as well


@contextlib.contextmanager
def cluster(num_hosts: int) -> Iterator[Cluster]:
    """Make so many hosts, and take them down at the end, after a failure and SIGTERM too."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    _remove_left_behind()
    former = signal.signal(signal.SIGTERM, leave)
    with tempfile.TemporaryDirectory(prefix="ganbert-hosts-") as folder:
        made = Cluster(Path(folder), num_hosts)
        try:
            made.build()
            made.wait_for_ssh()
            yield made
        finally:
            made.remove()
            signal.signal(signal.SIGTERM, former)


def _remove_left_behind() -> None:
    """Take down the hosts of processes that were killed before they could."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    for space in (line.split()[0] for line in done.stdout.splitlines() if line):
        match = re.fullmatch(r"g(\d{7})(sw|n\d+)", space)
        if match and not Path("/proc", str(int(match[1]))).exists():
            _remove_space(space)


def _remove_space(space: str) -> None:
    """End what runs in a namespace, and remove it with its files."""
    words = subprocess.run(
        ["ip", "netns", "pids", space], capture_output=True, text=True, check=False
    ).stdout.split()
    for word in words:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(word), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
    shutil.rmtree(Path("/etc/netns", space), ignore_errors=True)


def finish_all(processes: Sequence[subprocess.Popen[str]], seconds: float) -> list[tuple[int, str]]:
    """Wait for all; return exit code and output of each."""
    deadline = time.monotonic() + seconds
    results = []
    for process in processes:
        output, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
        results.append((process.returncode, output))
    return results

"""Pods of a rendered Job, run on this machine: what the kubelet makes of them, from namespaces.

Each pod has its own network (tests/cluster/hosts.py), host name, processes (its command is process
1), read-only root, user and volumes, at the paths of the manifest. The image is this repository and
the Python that runs the tests. It needs root.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.cluster.hosts import Cluster

from .manifests import ROOT, Document, Pod, environment, expanded, find

IMAGE_FOLDER = "/opt/ganbert"
_LETTERS = itertools.cycle("klmpqrtuvwxyz")
_START = Path(__file__).with_name("pod.sh")


def entrypoint() -> list[str]:
    """The image's ENTRYPOINT, if its Dockerfile is here and it is Python; or what it does."""
    dockerfile = ROOT / "docker" / "Dockerfile"
    if dockerfile.is_file():
        for text in re.findall(r"^ENTRYPOINT (\[.*\])$", dockerfile.read_text(), re.MULTILINE):
            words = json.loads(text)
            if words[:2] == ["python", "-m"] or words[:2] == ["python3", "-m"]:
                return [str(word) for word in words]
    supervise = (
        "import os, sys; from ganbert.launch import supervise, supervised; "
        "sys.exit(supervise(sys.argv[1:], supervised(dict(os.environ))))"
    )
    return ["python", "-c", supervise]


class Pods(Cluster):
    """Pods on one network; see `pods_of`.

    Attributes
    ----------
    templates : of each pod
    given : what an operator mounts into every pod besides, by its place there
    """

    def __init__(
        self, folder: Path, documents: list[Document], templates: dict[str, Pod], subdomain: str
    ) -> None:
        super().__init__(folder, len(templates))
        # Other hosts of this process have its number too.
        self._prefix = f"{next(_LETTERS)}{os.getpid():07d}"
        self._switch = f"{self._prefix}sw"
        self.folder, self._documents, self._subdomain = folder, documents, subdomain
        self.names, self.templates = list(templates), list(templates.values())
        self.given: dict[str, Path] = {}

    def _build_host(self, host: int, hosts: str, key: Path) -> None:
        # What cluster DNS answers for a headless service.
        for name, address in zip(self.names, self.addresses, strict=True):
            hosts += f"{address} {name}.{self._subdomain}\n"
        super()._build_host(host, hosts, key)

    def _ssh_daemon(self, host: int) -> None:
        """None in these."""

    def volume(self, name: str, index: int) -> Path:
        """The folder behind a volume: claims are shared, all else is the pod's own."""
        spec = self.templates[index].spec
        (volume,) = [one for one in spec["volumes"] if one["name"] == name]
        if "persistentVolumeClaim" in volume:
            folder = self.folder / "claims" / volume["persistentVolumeClaim"]["claimName"]
        else:
            folder = self.folder / f"pod-{index}" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            if "configMap" in volume:
                data = find(self._documents, "ConfigMap", volume["configMap"]["name"])["data"]
                for file, text in data.items():
                    (folder / file).write_text(text)
            user = spec["securityContext"]["runAsUser"]
            os.chown(folder, user, user)  # fsGroup's work
        return folder

    def start_container(self, name: str, index: int, *more: object) -> subprocess.Popen[str]:
        """Start a container of a pod, with `more` arguments at its end."""
        container = self.templates[index].container(name)
        shown = self.folder / f"pod-{index}"
        shown.mkdir(exist_ok=True)
        root = shown / "root"
        root.mkdir(exist_ok=True)
        binds = shown / f"{name}.binds"
        binds.write_text("".join(f"{m}\t{f}\t{t}\n" for m, f, t in self._binds(container, index)))
        words = expanded(container, {"JOB_COMPLETION_INDEX": str(index)})
        if "command" not in container:
            words = [*entrypoint(), *words]
        user = self.templates[index].spec["securityContext"]["runAsUser"]
        values = self._environment(container, index)
        inside = [
            "bash",
            "-c",
            f"cd {IMAGE_FOLDER} && exec {shlex.join([*words, *map(str, more)])}",
        ]
        return subprocess.Popen(
            self.command(
                index, "unshare", "--mount", "--pid", "--fork", "--kill-child",
                "bash", _START, root, binds, user,
                *(f"{key}={value}" for key, value in values.items()), *inside,
            ),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def _binds(self, container: Document, index: int) -> Iterator[tuple[str, Path, str]]:
        mounts = [
            (
                "ro" if mount.get("readOnly") else "rw",
                self.volume(mount["name"], index),
                mount["mountPath"],
            )
            for mount in container["volumeMounts"]
        ]
        yield from sorted(mounts, key=lambda mount: mount[2])
        for place, folder in self.given.items():
            yield "ro", folder, place
        # The image: this repository at its place in it, and Python where it is here.
        yield "ro", ROOT, IMAGE_FOLDER
        for folder in dict.fromkeys((sys.base_prefix, sys.prefix)):
            if not folder.startswith("/usr"):
                yield "ro", Path(folder), folder

    def _environment(self, container: Document, index: int) -> dict[str, str]:
        image = {
            "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": IMAGE_FOLDER,
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
        }
        own = {
            "HOSTNAME": self.names[index],
            "POD_IP": self.addresses[index],
            "JOB_COMPLETION_INDEX": str(index),
        }
        return image | own | environment(container)

    def first_process(self, started: subprocess.Popen[str]) -> psutil.Process:
        """Process 1 of a container."""
        (first,) = psutil.Process(started.pid).children()
        return first

    def inside(
        self, started: subprocess.Popen[str], *words: object
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, as a probe does."""
        first = self.first_process(started).pid
        enter = [
            "nsenter",
            "--target",
            first,
            "--mount",
            "--net",
            "--pid",
            "--uts",
            "--root",
            "--wd",
        ]
        return subprocess.run(
            [*map(str, enter), *map(str, words)],
            capture_output=True, text=True, timeout=120, check=False,
            env={"PATH": f"{sys.prefix}/bin:/usr/bin:/bin"},
        )  # fmt: skip


@contextlib.contextmanager
def pods_of(documents: list[Document], templates: dict[str, Pod], subdomain: str) -> Iterator[Pods]:
    """Make networks and folders for pods, by their host names; take them down at the end."""
    with tempfile.TemporaryDirectory(prefix="ganbert-pods-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103
        made = Pods(Path(folder), documents, templates, subdomain)
        try:
            made.build()
            yield made
        finally:
            made.remove()


def exit_codes(started: list[subprocess.Popen[str]], seconds: float) -> list[tuple[int, str]]:
    """Wait for containers; return exit codes as the kubelet gives them, and what was printed."""
    deadline = time.monotonic() + seconds
    results = []
    for process in started:
        output, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
        code = process.returncode
        results.append((128 - code if code < 0 else code, output))
    return results


def lacking() -> str | None:
    """Say which program of the sandbox is not here, or None."""
    names = [name for name in ("setpriv", "nsenter", "unshare") if shutil.which(name) is None]
    return f"not installed: {', '.join(names)} (util-linux)" if names else None


def kill(process: psutil.Process) -> None:
    """SIGKILL."""
    process.send_signal(signal.SIGKILL)

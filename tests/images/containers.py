"""Both images, built by buildah on a bare Debian and run by podman: real containers, no registry.

The base is what `mmdebstrap` makes from Debian's archive in place of the CUDA image that cannot be
pulled here, so that every line of the Dockerfile runs. Python packages come from a folder of wheels
that pip fills from wherever the environment of the tests got its own: the image gets the same
versions, and no network but apt's.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ganbert.folder_lock import held

ROOT = Path(__file__).parents[2]
PROGRAMS = ("buildah", "podman", "crun", "mmdebstrap", "unshare")
# The release whose python3 is the one that the wheels are for.
RELEASES = {(3, 11): "bookworm", (3, 13): "trixie"}
# As in Docker's images of Ubuntu: dpkg does not wait for the disk after each file, and leaves out
# manuals, of which every layer would be a copy more.
LIKE_AN_IMAGE = (
    "--dpkgopt=force-unsafe-io",
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")),
    '--aptopt=Acquire::Languages "none"',
)
TARGETS = ("train", "infer")
USER = 10001


class Unavailable(Exception):
    """What this machine or its network lacks for containers."""


def missing() -> str | None:
    """What these tests lack on this machine, if anything."""
    if os.geteuid() != 0:
        return "images are built from a bare Debian, which only root can make"
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        return f"no {', '.join(lacking)} on this machine (apt-get install -y {' '.join(lacking)})"
    if sys.version_info[:2] not in RELEASES:
        return f"no Debian release has Python {sys.version_info[0]}.{sys.version_info[1]}"
    return None


def _alone(*command: object) -> list[str]:
    """A command with mounts of its own, so that nothing stays mounted.

    Crun refuses to run where cgroups of version 2 are mounted beside those of version 1.
    """
    script = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, command)]


@dataclass(frozen=True)
class Engine:
    """Podman and buildah with a store of their own in `folder`."""

    folder: Path

    def _store(self) -> list[object]:
        driver = "overlay" if "overlay" in Path("/proc/filesystems").read_text() else "vfs"
        store = ["--root", self.folder / "store", "--runroot", self.folder / "run"]
        return [*store, "--storage-driver", driver]

    def podman(self, *words: object) -> str:
        command = _alone("podman", *self._store(), *words)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"podman {words[0]}: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()

    def make_images(self) -> None:
        """Make both images, or what has changed of them; wait for another who does.

        Raises
        ------
        Unavailable
            If this machine or its network cannot.
        """
        with held(self.folder, expected="images", remedy="wait", wait=True):
            # Each waits for the network and the disk more than it computes.
            with ThreadPoolExecutor() as side_by_side:
                made = []
                if not self._has_base():
                    made.append(side_by_side.submit(self._make_base))
                if not self._wheels.exists():
                    made.append(side_by_side.submit(fill_wheelhouse, self._wheels))
            for one in made:
                one.result()
            for target in TARGETS:
                self._build(target)

    @property
    def _wheels(self) -> Path:
        return self.folder / "wheels"

    def _has_base(self) -> bool:
        """Whether an earlier run has left the bare Debian here."""
        return bool(self.podman("images", "-q", "localhost/base:test"))

    def _make_base(self) -> None:
        """Make and import the bare Debian.

        Raises
        ------
        Unavailable
            If Debian's archive does not answer, or a container cannot run here.
        """
        tar, release = self.folder / "base.tar", RELEASES[sys.version_info[:2]]
        command = ["mmdebstrap", "--quiet", "--variant=minbase", *LIKE_AN_IMAGE, release, str(tar)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"mmdebstrap: {done.stderr.strip()[-300:]}")
        self.podman("import", "-q", tar, "localhost/base:test")
        tar.unlink()
        self.podman("--runtime=crun", *self._run_options(), "localhost/base:test", "true")

    def _build(self, target: str) -> None:
        """Build a target of docker/Dockerfile as localhost/ganbert:test-TARGET."""
        arguments = {
            "BASE_IMAGE": "localhost/base:test",
            "INFER_BASE_IMAGE": "localhost/base:test",
            "TORCH_CUDA": torch.version.cuda or "cpu",
            "PIP_NO_INDEX": "1",
            "REVISION": "0123abc",
        }
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        # The format that knows SHELL; layers, so that the second target finds those of the first.
        options += ["--isolation=chroot", "--format=docker", "--layers"]
        options += ["-f", str(ROOT / "docker" / "Dockerfile"), f"--target={target}"]
        options.append(f"--build-context=wheels={self._wheels}")
        options.append(f"--tag=localhost/ganbert:test-{target}")
        command = _alone("buildah", *self._store(), "build", *options, ROOT)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def inspect(self, target: str) -> dict[str, object]:
        (image,) = json.loads(self.podman("image", "inspect", f"localhost/ganbert:test-{target}"))
        return dict(image["Config"])

    def _run_options(self) -> list[object]:
        # As kubernetes/base runs them: no capability, read-only root, no way to more rights.
        rights = ["--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only"]
        # Podman's own limits are higher than a root without CAP_SYS_RESOURCE may set.
        limits = ["--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"]
        return ["run", "--rm", "--cgroups=disabled", "--network=none", *limits, *rights]

    def command(
        self,
        target: str,
        *words: object,
        mounts: dict[str, Path] | None = None,
        environment: dict[str, object] | None = None,
        options: tuple[str, ...] = (),
    ) -> list[str]:
        """`podman run` of an image; a mount whose place ends in `:ro` is read-only."""
        given: list[object] = [*options]
        for place, folder in (mounts or {}).items():
            given.append(f"--volume={folder}:{place}")
        given += [f"--env={name}={value}" for name, value in (environment or {}).items()]
        image = f"localhost/ganbert:test-{target}"
        return _alone(
            "podman", "--runtime=crun", *self._store(), *self._run_options(), *given, image, *words
        )

    def run(self, *arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
        """Run a container to its end."""
        command = self.command(*arguments, **options)  # type: ignore[arg-type]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def fill_wheelhouse(folder: Path) -> None:
    """Download, or build once, the wheels that the Dockerfile installs."""
    source, partial = folder.with_name("source"), folder.with_name("wheels.partial")
    (source / "ganbert").mkdir(parents=True, exist_ok=True)
    for name in ("setup.py", "LICENSE", "README.md", "ganbert/__init__.py"):
        shutil.copy(ROOT / name, source / name)
    environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "-w", str(partial)]
    done = subprocess.run(
        [*command, "setuptools", "wheel", "torch", f"{source}[cuda12,serve]"],
        env={**environment, "DS_BUILD_OPS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Unavailable(f"pip wheel: {done.stderr.strip()[-300:]}")
    partial.rename(folder)


def own_folder(path: Path) -> Path:
    """Make a folder that the images' user may write to."""
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, USER, USER)
    return path


if __name__ == "__main__":
    if (lacking := missing()) is not None:
        sys.exit(f"no images: {lacking}")
    try:
        Engine(Path(os.environ["GANBERT_IMAGES"])).make_images()
    except Unavailable as reason:
        sys.exit(f"no images: {reason}")

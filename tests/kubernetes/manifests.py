"""Rendered manifests, and the pods in them, whatever kind holds those."""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "kubernetes"
OVERLAYS = tuple(
    sorted(path.parent.name for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))
)
TARGETS = ("base", *(f"overlays/{name}" for name in OVERLAYS))
# What a user copies; `cluster` is a component, which the others take in.
EXAMPLES = tuple(
    f"example/{path.parent.name}"
    for path in sorted(KUBERNETES.glob("example/*/kustomization.yaml"))
    if path.parent.name != "cluster"
)
SITES = ("overlays/site", "overlays/site-infiniband")
# Components, replacements and labels in templates are all there since then.
_OLDEST_KUSTOMIZE = (5, 0)
_PATH = f"{os.environ.get('PATH', '')}:{sys.prefix}/kubernetes/bin"
# Ten times as fast, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Document = dict[str, Any]


def tool(name: str) -> str | None:
    """Find a program of `make kubernetes-tools`, there or on the PATH."""
    return shutil.which(name, path=_PATH)


@functools.cache
def kubectl() -> str | None:
    """Find a kubectl whose kustomize is recent enough; Debian 12's own is not."""
    for folder in _PATH.split(":"):
        program = shutil.which("kubectl", path=folder)
        if program is not None and _kustomize_version(program) >= _OLDEST_KUSTOMIZE:
            return program
    return None


def _kustomize_version(program: str) -> tuple[int, ...]:
    done = subprocess.run(
        [program, "version", "--client"], capture_output=True, text=True, check=False
    )
    match = re.search(r"Kustomize Version: v(\d+)\.(\d+)", done.stdout)
    return tuple(map(int, match.groups())) if match else (0,)


@functools.cache
def rendered_text(target: str) -> str:
    """Render a folder of kubernetes/ as `kubectl apply -k` would."""
    done = subprocess.run(
        [kubectl() or "kubectl", "kustomize", KUBERNETES / target],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # a deprecated field is a warning there
    return done.stdout


def load_all(text: str) -> list[Document]:
    """Read a file of YAML documents."""
    return [one for one in yaml.load_all(text, Loader=_LOADER) if one]


def render(target: str) -> list[Document]:
    """Return the documents of a rendered folder, for the caller to change."""
    return load_all(rendered_text(target))


def site_of(target: str) -> str | None:
    """Return what a folder of kubernetes/ stands on; None if it brings that itself."""
    if target in (*SITES, "overlays/smoke-cpu"):
        return None
    return SITES[target == "overlays/dgx1-8node"]


def applied(target: str) -> list[Document]:
    """Return the documents of a folder and those of its site, as the cluster then holds them."""
    site = site_of(target)
    return [*(render(site) if site else []), *render(target)]


def find(documents: list[Document], kind: str, name: str | None = None) -> Document:
    """Return the only document of a kind (and a name)."""
    found = [
        document
        for document in documents
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    ]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def walk(node: Any) -> Iterator[Document]:
    """Yield every mapping in a document."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


@dataclass(frozen=True)
class Pod:
    """A pod template: where it stands, its labels, its spec."""

    owner: str
    namespace: str
    labels: dict[str, str]
    spec: Document

    @property
    def containers(self) -> list[Document]:
        """All containers, those that run first too."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def container(self, name: str) -> Document:
        """Return the container of that name."""
        return next(one for one in self.containers if one["name"] == name)


def pods(documents: list[Document]) -> list[Pod]:
    """Find every pod template, also those inside the templates of custom kinds."""
    found = []
    for document in documents:
        meta = document["metadata"]
        for node in walk(document):
            spec = node.get("spec")
            if isinstance(spec, dict) and "containers" in spec:
                labels = node.get("metadata", {}).get("labels", {})
                owner = f"{document['kind']}/{meta['name']}"
                found.append(Pod(owner, meta.get("namespace", ""), labels, spec))
    return found


def environment(container: Document) -> dict[str, str]:
    """Return the plain values of a container's environment."""
    return {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def expanded(container: Document, more: dict[str, str]) -> list[str]:
    """Return command and arguments with $(NAME) filled in, as the kubelet does."""
    values = {**environment(container), **more}
    words = [*container.get("command", []), *container.get("args", [])]
    return [
        re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), word) for word in words
    ]

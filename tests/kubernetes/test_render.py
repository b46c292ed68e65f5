"""Every overlay renders, and the API server of each supported version would take its fields."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .manifests import TARGETS, Document, kubectl, render, tool

# Kubernetes 1.29 is the first with podReplacementPolicy and backoffLimitPerIndex on by default; the
# newest is the newest that kubernetes-validate carries.
VERSIONS = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
CRD_VARIABLE = "GANBERT_CRDS"
CUSTOM_GROUPS = {"jobset.x-k8s.io", "kubeflow.org", "trainer.kubeflow.org", "monitoring.coreos.com"}


def group(document: Document) -> str:
    return document["apiVersion"].rpartition("/")[0]


def is_custom(document: Document) -> bool:
    return group(document) in CUSTOM_GROUPS


def test_renders(documents: list[Document]) -> None:
    assert documents
    keys = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in documents]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("version", VERSIONS)
def test_core_kinds_are_valid(version: str, tmp_path: Path) -> None:
    validate = tool("kubernetes-validate")
    if validate is None:
        pytest.skip("no kubernetes-validate (make kubernetes-tools)")
    core = [d for target in TARGETS for d in render(target) if not is_custom(d)]
    file = tmp_path / "core.yaml"
    file.write_text(yaml.safe_dump_all(core))
    done = subprocess.run(
        [validate, "--strict", "-k", version, file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(core) > len(TARGETS)
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(core[0] | {"specification": {}}))
    done = subprocess.run(
        [validate, "--strict", "-k", version, broken], capture_output=True, check=False
    )
    assert done.returncode != 0, "an unknown field was not seen"

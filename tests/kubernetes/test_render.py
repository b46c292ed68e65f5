"""Every overlay renders, and the API server of each supported version would take its fields."""

import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .manifests import TARGETS, Document, find, load_all, render, tool

# Kubernetes 1.29 is the first with podReplacementPolicy and backoffLimitPerIndex on by default; the
# newest is the newest that kubernetes-validate carries.
VERSIONS = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
CRD_VARIABLE = "GANBERT_CRDS"
# Kinds whose projects publish one and the same spec for both: the folder may hold either.
TWINS = {"TrainingRuntime": "ClusterTrainingRuntime"}
CUSTOM_GROUPS = {"jobset.x-k8s.io", "kubeflow.org", "trainer.kubeflow.org", "monitoring.coreos.com"}


def group(document: Document) -> str:
    return document["apiVersion"].rpartition("/")[0]


def is_custom(document: Document) -> bool:
    return group(document) in CUSTOM_GROUPS


def test_renders(documents: list[Document]) -> None:
    assert documents
    keys = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in documents]
    assert len(keys) == len(set(keys))
    (namespace,) = [d["metadata"]["name"] for d in documents if d["kind"] == "Namespace"]
    for document in documents:
        # Else two sites on one cluster would write the same object.
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == namespace, document["metadata"]["name"]


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


def test_an_unknown_field_is_seen(tmp_path: Path) -> None:
    validate = tool("kubernetes-validate")
    if validate is None:
        pytest.skip("no kubernetes-validate (make kubernetes-tools)")
    job = find(render("base"), "Job")
    job["spec"]["backoffLimitPerPod"] = 3
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(job))
    command = [validate, "--strict", "-k", VERSIONS[0], broken]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "backoffLimitPerPod" in done.stdout + done.stderr


@functools.cache
def schema(group_: str, kind: str, version: str) -> dict[str, Any]:
    """The schema of a custom kind, as its project publishes it."""
    for file in sorted(Path(os.environ[CRD_VARIABLE]).glob("*.yaml")):
        for definition in load_all(file.read_text()):
            spec = definition["spec"]
            if (spec["group"], spec["names"]["kind"]) == (group_, kind):
                (found,) = [one for one in spec["versions"] if one["name"] == version]
                made = strict(found["schema"]["openAPIV3Schema"])
                # The API server's own; a definition says no more of it than that it is an object.
                made["properties"] |= {"metadata": {"type": "object"}}
                return made
    if kind in TWINS:
        return schema(group_, TWINS[kind], version)
    raise AssertionError(f"{os.environ[CRD_VARIABLE]} has no {kind} of {group_}")


def strict(node: Any) -> Any:
    """Refuse fields that a schema does not name, as the API server does with strict validation."""
    if isinstance(node, list):
        return [strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: strict(value) for key, value in node.items()}
    if made.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    if isinstance(made.get("properties"), dict) and not made.get(OPEN) and "type" in made:
        made.setdefault("additionalProperties", False)
    return made


OPEN = "x-kubernetes-preserve-unknown-fields"


def errors(document: Document) -> list[str]:
    """What the definition of a custom kind refuses in a document."""
    jsonschema = pytest.importorskip("jsonschema")
    version = document["apiVersion"].rpartition("/")[2]
    found = schema(group(document), document["kind"], version)
    validator = jsonschema.Draft202012Validator(found)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


needs_definitions = pytest.mark.skipif(
    not os.environ.get(CRD_VARIABLE),
    reason=f"{CRD_VARIABLE} names no folder of custom resource definitions",
)


@needs_definitions
def test_custom_kinds_are_valid(documents: list[Document]) -> None:
    for document in documents:
        if is_custom(document):
            assert errors(document) == [], document["kind"]


@needs_definitions
@pytest.mark.parametrize(
    ("target", "kind", "field"),
    [
        ("overlays/jobset", "JobSet", "failurePolicy"),
        ("overlays/mpijob", "MPIJob", "runPolicy"),
        ("overlays/trainer-v2", "TrainJob", "trainer"),
        ("overlays/trainer-v2", "TrainingRuntime", "mlPolicy"),
        ("overlays/monitored", "PodMonitor", "selector"),
    ],
)
def test_an_unknown_field_of_a_custom_kind_is_seen(target: str, kind: str, field: str) -> None:
    document = next(d for d in render(target) if d["kind"] == kind)
    document["spec"][field]["patience"] = 3
    (error,) = errors(document)
    assert "patience" in error


@needs_definitions
def test_an_unknown_field_of_an_alert_is_seen() -> None:
    document = find(render("overlays/monitored"), "PrometheusRule")
    document["spec"]["groups"][0]["rules"][-1]["patience"] = "3m"
    (error,) = errors(document)
    assert "patience" in error


@needs_definitions
def test_every_custom_kind_has_its_definition_at_hand() -> None:
    """A group that nobody has entered above would be taken for one of Kubernetes' own."""
    own = {"v1", "apps/v1", "autoscaling/v2", "batch/v1", "networking.k8s.io/v1", "policy/v1"}
    documents = [document for target in TARGETS for document in render(target)]
    for document in documents:
        assert document["apiVersion"] in own or is_custom(document), document["apiVersion"]
    kinds = {(group(d), d["kind"], d["apiVersion"].rpartition("/")[2]) for d in documents}
    for of, kind, version in sorted(kinds):
        if of in CUSTOM_GROUPS:
            assert schema(of, kind, version)

"""kubernetes/example, and what README.md makes of it: its own words, carried out on a copy."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from .manifests import (
    EXAMPLES,
    KUBERNETES,
    Document,
    environment,
    find,
    kubectl,
    load_all,
    pods,
    render,
    rendered_text,
    tool,
    walk,
)
from .policies import violations
from .test_pages import COMMANDS, PAGE, objects
from .test_render import CRD_VARIABLE, VERSIONS, errors, is_custom

STEPS = tuple(name.removeprefix("example/") for name in EXAMPLES)
CLUSTER = "kubernetes/mine/cluster/kustomization.yaml"


class Copy:
    """A copy of kubernetes/ in which a person works as the page says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run(["cp", "-r", KUBERNETES, folder / "kubernetes"], check=True)

    def carry_out(self, wanted: Callable[[list[str]], bool]) -> int:
        """Run commands of the page that are no kubectl's; return how many."""
        chosen = [words for words in COMMANDS if words[0] in ("cp", "sed") and wanted(words)]
        for words in chosen:
            before = self.text(words[-1])
            subprocess.run(words, cwd=self.folder, check=True)
            assert self.text(words[-1]) != before, f"it changes nothing: {shlex.join(words)}"
        return len(chosen)

    def text(self, path: str) -> str | None:
        file = self.folder / path
        return file.read_text() if file.is_file() else str(file.exists())

    def write(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def change(self, path: str, before: str, after: str) -> None:
        text = (self.folder / path).read_text()
        assert text.count(before) == 1
        self.write(path, text.replace(before, after))

    def render(self, step: str) -> list[Document]:
        done = subprocess.run(
            [str(kubectl()), "kustomize", self.folder / "kubernetes" / "mine" / step],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return load_all(done.stdout)


@pytest.fixture
def mine(tmp_path: Path) -> Copy:
    made = Copy(tmp_path)
    assert made.carry_out(lambda words: words[0] == "cp") == 1
    return made


def check_namespaces(documents: list[Document], namespace: str) -> None:
    for document in documents:
        of = None if document["kind"] == "Namespace" else namespace
        assert document["metadata"].get("namespace") == of, document["metadata"]["name"]


def is_of_dgx(words: list[str]) -> bool:
    return words[0] == "sed" and "nodes=" not in words[2]


# ---- the page's own examples -------------------------------------------------------------------
def examples() -> list[tuple[str, str]]:
    """Path, from the comment in its first line, and text of every YAML in the page."""
    found = re.findall(r"```yaml\n(# (\S+)\n.*?)```", PAGE, re.DOTALL)
    assert len(found) == PAGE.count("```yaml") >= 2
    return [(path, text) for text, path in found]


@pytest.mark.parametrize(("path", "text"), examples(), ids=[path for path, _ in examples()])
def test_an_example_of_the_page_renders_into_one_namespace(
    path: str, text: str, mine: Copy
) -> None:
    mine.write(path, text)
    documents = mine.render(Path(path).parent.name)
    assert documents
    check_namespaces(documents, "ganbert")
    images = {c["image"] for pod in pods(documents) for c in pod.containers}
    assert images == {"registry.example/ganbert:0.1.0-train"}


def test_the_short_example_is_what_is_shipped() -> None:
    path, text = examples()[0]
    shipped = KUBERNETES / path.replace("kubernetes/mine", "example")
    assert yaml.safe_load(text) == yaml.safe_load(shipped.read_text())


# ---- what is shipped ---------------------------------------------------------------------------
@pytest.mark.parametrize("step", STEPS)
def test_a_step_has_what_the_cluster_has(step: str) -> None:
    documents = render(f"example/{step}")
    check_namespaces(documents, "ganbert-smoke" if step == "smoke" else "ganbert")
    for pod in pods(documents):
        for container in pod.containers:
            assert container["image"].startswith("registry.example/ganbert:0.1.0-")
        assert violations(pod) == set()
    for document in documents:
        if document["kind"] == "PersistentVolumeClaim":
            assert document["spec"]["storageClassName"] == "your-shared-class"
            size = document["spec"]["resources"]["requests"]["storage"]
            assert (size == "2Gi") == (step == "smoke")
        if document["kind"] == "ServiceAccount":
            assert document["imagePullSecrets"] == [{"name": "registry"}]
    assert "ganbert-values" not in rendered_text(
        f"example/{step}"
    )  # it is no object of the cluster


def test_a_step_is_short_and_its_overlay_is_whole() -> None:
    for step in STEPS:
        text = (KUBERNETES / "example" / step / "kustomization.yaml").read_text()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert len(lines) == {"smoke": 4, "monitoring": 2}.get(step, 3)
        (overlay,) = yaml.safe_load(text).get("resources", ["../../overlays/monitored"])
        target = (KUBERNETES / "example" / step / overlay).resolve()
        bare = {(d["kind"], d["metadata"]["name"]) for d in render(str(target))}
        if step == "monitoring":
            bare -= {(d["kind"], d["metadata"]["name"]) for d in render("base")}
        assert bare == {(d["kind"], d["metadata"]["name"]) for d in render(f"example/{step}")}


def test_the_secret_for_the_registry_is_made_on_the_page() -> None:
    made = [
        words[words.index("-n") + 1]
        for words in COMMANDS
        if "docker-registry" in words and words[words.index("docker-registry") + 1] == "registry"
    ]
    assert made == ["ganbert-smoke", "ganbert"]


def test_the_operators_labels_are_those_of_the_cluster_file() -> None:
    documents = render("example/monitoring")
    kinds = [d["kind"] for d in documents if "release" in d["metadata"].get("labels", {})]
    assert kinds == ["PodMonitor", "PodMonitor", "PrometheusRule"]
    boards = find(documents, "ConfigMap", "ganbert-dashboards")
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_steps_are_valid(tmp_path: Path) -> None:
    validate = tool("kubernetes-validate")
    if validate is None:
        pytest.skip("no kubernetes-validate (make kubernetes-tools)")
    documents = [d for step in STEPS for d in render(f"example/{step}")]
    file = tmp_path / "core.yaml"
    file.write_text(yaml.safe_dump_all([d for d in documents if not is_custom(d)]))
    for version in (VERSIONS[0], VERSIONS[-1]):
        command = [validate, "--strict", "-k", version, file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    if os.environ.get(CRD_VARIABLE):
        for document in filter(is_custom, documents):
            assert errors(document) == []


# ---- what a person changes ---------------------------------------------------------------------
def outputs(documents: list[Document]) -> set[str]:
    """Every folder of a run that the documents name."""
    return set(re.findall(r"/runs/(?!derivatives)([\w-]+)", yaml.safe_dump(documents)))


def test_the_name_of_the_run_is_said_once(mine: Copy) -> None:
    mine.change(CLUSTER, "run=av45", "run=fdg-2")
    for step in ("train", "infer", "serve"):
        assert outputs(mine.render(step)) == {"fdg-2"}


def test_the_namespace_is_said_once(mine: Copy) -> None:
    mine.change(CLUSTER, "namespace: ganbert", "namespace: lab")
    for step in set(STEPS) - {"smoke"}:
        check_namespaces(mine.render(step), "lab")
    assert find(mine.render("site"), "Namespace")["metadata"]["name"] == "lab"


KINDS = {
    "base": "Job", "overlays/kueue": "Job", "overlays/dgx1-8node": "Job",
    "overlays/jobset": "JobSet", "overlays/trainer-v2": "TrainingRuntime",
    "overlays/mpijob": "MPIJob",
}  # fmt: skip


@pytest.mark.parametrize("training", KINDS)
def test_size_run_and_recipe_of_a_training_are_said_once(training: str, mine: Copy) -> None:
    mine.change("kubernetes/mine/train/kustomization.yaml", "[../../base]", f"[../../{training}]")
    assert mine.carry_out(lambda words: words[0] == "sed" and "nodes=" in words[2]) == 1
    mine.change(CLUSTER, "slots=8", "slots=6")
    mine.change(CLUSTER, "ds_configs/paper_tamed", "ds_configs/h100")
    mine.change(CLUSTER, "run=av45", "run=fdg-2")
    documents = mine.render("train")
    check_namespaces(documents, "ganbert")
    assert find(documents, "ConfigMap", "ganbert-size")["data"] == {"nodes": "4", "slots": "6"}
    nodes, slots = set(), set()
    for node in walk(find(documents, KINDS[training])):
        nodes |= {node[k] for k in ("completions", "parallelism", "numNodes") if k in node}
        slots |= {node[k] for k in ("nvidia.com/gpu", "slotsPerWorker") if k in node}
        variable = {node["name"]: node["value"]} if {"name", "value"} <= node.keys() else {}
        nodes |= {v for k, v in variable.items() if k == "GANBERT_NODES"}
        slots |= {v for k, v in variable.items() if k == "GANBERT_SLOTS"}
        nodes |= {node["Worker"]["replicas"]} if "Worker" in node else set()
    assert {str(one) for one in nodes} == {"4"}
    assert {str(one) for one in slots} == {"6"}
    if training != "overlays/mpijob":  # whose ranks have them from a file
        assert outputs(documents) == {"fdg-2"}
        recipes = {n["value"] for n in walk(documents) if n.get("name") == "GANBERT_CONFIG"}
        assert recipes == {"ds_configs/h100"}
    if training == "overlays/trainer-v2":
        assert find(documents, "TrainJob")["spec"]["trainer"]["numNodes"] == 4


def test_the_number_of_shares_is_said_once(mine: Copy) -> None:
    mine.change(CLUSTER, "shares=8", "shares=3")
    job = find(mine.render("infer"), "Job")["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert (job["completions"], job["parallelism"]) == (3, 3)
    assert environment(container)["GANBERT_SHARDS"] == "3"


def test_eight_dgx1_share_namespace_claims_and_run_with_the_other_steps(mine: Copy) -> None:
    """The trap: prepared data never reached a training in a namespace of its own."""
    assert mine.carry_out(is_of_dgx) == 3
    rendered = {step: mine.render(step) for step in set(STEPS) - {"smoke"}}
    for documents in rendered.values():
        check_namespaces(documents, "ganbert")
    namespace = find(rendered["site"], "Namespace")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    (pod,) = pods(rendered["train"])
    train = pod.container("train")
    assert environment(train)["GANBERT_CONFIG"] == "ds_configs/paper"
    assert "train: adds IPC_LOCK" in violations(pod)
    written = environment(train)["GANBERT_OUTPUT"]
    for step in ("infer", "serve"):
        assert f"--model={written}/export/" in yaml.safe_dump(rendered[step])
    assert f"ganbert-read:{written}/export" in PAGE
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for documents in rendered.values()
        for one in pods(documents)
        for volume in one.spec["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert {f"persistentvolumeclaim/{name}" for name in claims} <= objects()
    # `prepare` writes what the training's first container copies.
    prepared = find(rendered["prepare"], "Job")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert pod.container("stage")["command"][2] == prepared[1]
    assert environment(train)["GANBERT_DATA"] == pod.container("stage")["command"][3]

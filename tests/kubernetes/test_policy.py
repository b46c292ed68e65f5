"""What a cluster's guards would say, and what becomes of a Job when its pods fail."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ganbert.errors import EXIT_INTERRUPTED, EXIT_NOT_MET, EXIT_SOME_REFUSED, EXIT_USER_ERROR

from .manifests import (
    KUBERNETES,
    SITES,
    TARGETS,
    Document,
    Pod,
    environment,
    find,
    kubectl,
    pods,
    render,
    rendered_text,
    site_of,
    tool,
    walk,
)  # fmt: skip
from .policies import action, violations

ENFORCE = "pod-security.kubernetes.io/enforce"
STOPPED_BEFORE_SAVING = 143  # 128 + SIGTERM
JOBS = [
    "base",
    "overlays/single-node",
    "overlays/dgx1-8node",
    "overlays/smoke-cpu",
    "overlays/kueue",
]
GANGS = ["overlays/jobset", "overlays/trainer-v2"]


def job_spec(target: str) -> Document:
    """The spec of the Job, wherever it stands."""
    specs = [node for one in render(target) for node in walk(one) if "podFailurePolicy" in node]
    assert len(specs) == 1
    return specs[0]


def test_pods_fit_the_level_of_their_namespace(documents: list[Document]) -> None:
    level = find(documents, "Namespace")["metadata"]["labels"][ENFORCE]
    for pod in pods(documents):
        refused = violations(pod)
        if level == "restricted":
            assert refused == set(), pod.owner
        else:
            assert level == "privileged"
            # InfiniBand: root with one capability, where pinning memory needs it, and nothing more.
            assert {what.split(": ")[1] for what in refused} == {
                "may be root",
                "user 0",
                "adds IPC_LOCK",
            }
            assert {what.split(": ")[0] for what in refused if "IPC_LOCK" in what} == {
                "rdma",
                "train",
            }


def test_ipc_lock_passes_where_its_site_is_applied() -> None:
    """The trap: neither restricted nor baseline lets IPC_LOCK in."""
    (pod,) = pods(render("overlays/dgx1-8node"))
    assert "train: adds IPC_LOCK" in violations(pod)
    plain, infiniband = ({key(d): d for d in render(site)} for site in SITES)
    # One namespace and its claims, or the data are not there.
    assert plain.keys() == infiniband.keys()
    (namespace,) = (name for name in plain if name[0] == "Namespace")
    assert namespace[2] == pod.namespace
    levels = [one[namespace]["metadata"]["labels"][ENFORCE] for one in (plain, infiniband)]
    assert levels == ["restricted", "privileged"]
    assert {k: d for k, d in plain.items() if k != namespace} == {
        k: d for k, d in infiniband.items() if k != namespace
    }
    # A capability that is added counts for root alone.
    assert pod.spec["securityContext"]["runAsUser"] == 0


def key(document: Document) -> tuple[str, str | None, str]:
    """Kind, namespace, name."""
    meta = document["metadata"]
    return document["kind"], meta.get("namespace"), meta["name"]


@pytest.mark.parametrize("target", [t for t in TARGETS if site_of(t)])
def test_no_step_sets_the_level_or_the_claims_of_its_site(target: str) -> None:
    """The trap: `prepare` applied beside dgx1-8node forbade IPC_LOCK again."""
    of_the_site = {"Namespace", "PersistentVolumeClaim", "ServiceAccount"}
    assert not of_the_site & {document["kind"] for document in render(target)}


def test_no_pod_can_talk_to_the_api_server(documents: list[Document]) -> None:
    assert find(documents, "ServiceAccount")["automountServiceAccountToken"] is False
    for pod in pods(documents):
        assert pod.spec["automountServiceAccountToken"] is False
    assert not [d for d in documents if d["kind"].endswith(("Role", "RoleBinding", "Secret"))]


def test_a_read_only_root_has_its_writable_places(documents: list[Document]) -> None:
    for pod in pods(documents):
        for container in pod.containers:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
        for container in pod.spec["containers"]:
            mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
            assert "/tmp" in mounts  # noqa: S108
            if environment(container).get("HOME") is not None:
                assert environment(container)["HOME"] in mounts
            if pod.labels["app.kubernetes.io/component"] == "training":
                volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
                shm = volumes[mounts["/dev/shm"]["name"]]["emptyDir"]  # noqa: S108
                assert shm["medium"] == "Memory"
                assert to_bytes(shm["sizeLimit"]) < to_bytes(
                    container["resources"]["limits"]["memory"]
                )
                assert not environment(container)["TORCH_EXTENSIONS_DIR"].startswith("/opt")


def to_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * 1024 ** ("KiMiGiTi".index(quantity[-2:]) // 2 + 1)


def test_requests_and_limits(documents: list[Document]) -> None:
    for pod in pods(documents):
        for container in pod.containers:
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys()
            assert "memory" in resources["limits"]
            assert "cpu" not in resources["limits"], "throttling one rank holds all of them up"
            for name, value in resources["requests"].items():
                if name in resources["limits"] and name != "cpu":
                    assert to_bytes(value) <= to_bytes(resources["limits"][name])


@pytest.mark.parametrize("target", [*JOBS, *GANGS])
def test_what_an_exit_code_does(target: str) -> None:
    job = job_spec(target)
    assert action(job, EXIT_USER_ERROR) == "FailJob"
    assert action(job, EXIT_INTERRUPTED) == "Ignore"
    assert action(job, EXIT_NOT_MET) == "Ignore"
    assert action(job, STOPPED_BEFORE_SAVING) == "Ignore"
    for crash in (1, 134, 137, 139):
        assert action(job, crash) == "Count"
        # Evicted, preempted, or on a node that is lost.
        assert action(job, crash, ["DisruptionTarget"]) == "Ignore"
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # or the policy does not hold
    assert job["podReplacementPolicy"] == "Failed"


@pytest.mark.parametrize("target", JOBS)
def test_a_crash_of_all_pods_does_not_spend_the_job(target: str) -> None:
    """The trap: `backoffLimit: 3` is spent by one accident of eight pods."""
    job = job_spec(target)
    accidents = 2 if target == "overlays/smoke-cpu" else 10
    assert "backoffLimit" not in job
    assert job["backoffLimitPerIndex"] == accidents
    assert job["maxFailedIndexes"] == 0


def test_lost_pods_can_be_replaced_at_once(tmp_path: Path) -> None:
    """Kubernetes allows no podFailurePolicy beside TerminatingOrFailed."""
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    mine = tmp_path / "kubernetes" / "overlays" / "mine"
    mine.mkdir()
    lines = ["resources: [../../base]", "components: [../../components/replace-lost-pods]"]
    (mine / "kustomization.yaml").write_text("\n".join(lines))
    done = subprocess.run(
        [str(kubectl()), "kustomize", mine], capture_output=True, text=True, check=True
    )
    job = find(list(yaml.safe_load_all(done.stdout)), "Job")["spec"]
    assert job["podReplacementPolicy"] == "TerminatingOrFailed"
    assert "podFailurePolicy" not in job
    assert job["backoffLimitPerIndex"] > job_spec("base")["backoffLimitPerIndex"]


@pytest.mark.parametrize("target", [*JOBS, *GANGS])
def test_a_node_without_a_sign_of_life_is_given_up_soon(target: str) -> None:
    tolerations = {one["key"]: one for one in training(target).spec["tolerations"]}
    for taint in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        assert tolerations[taint]["tolerationSeconds"] <= 60  # five minutes by default


@pytest.mark.parametrize("target", GANGS)
def test_a_jobset_starts_all_pods_anew(target: str) -> None:
    assert job_spec(target)["backoffLimit"] == 0
    (policy,) = [
        node["failurePolicy"]
        for one in render(target)
        for node in walk(one)
        if "failurePolicy" in node
    ]
    assert policy["maxRestarts"] == 10
    assert policy["restartStrategy"] == "BlockingRecreate"
    # The child Job that exit code 2 has failed says so, and is not begun again.
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_a_bad_share_of_inference_leaves_the_others_alone() -> None:
    job = job_spec("overlays/infer")
    assert action(job, EXIT_USER_ERROR) == "FailIndex"
    assert action(job, EXIT_SOME_REFUSED) == "FailIndex"
    assert action(job, STOPPED_BEFORE_SAVING) == "Ignore"
    assert action(job, 1) == "Count"
    assert "backoffLimitPerIndex" in job  # or FailIndex is refused


def test_a_stopped_prepare_is_no_failure() -> None:
    job = job_spec("overlays/prepare")
    assert action(job, EXIT_USER_ERROR) == "FailJob"
    assert action(job, STOPPED_BEFORE_SAVING) == "Ignore"
    assert action(job, 1) == "Count"


def training(target: str) -> Pod:
    return next(pod for pod in pods(render(target)) if "--no_ssh" in str(pod.spec))


@pytest.mark.parametrize("target", [*JOBS, *GANGS])
def test_a_hang_is_ended_sooner_than_a_wish_to_stop(target: str) -> None:
    pod = training(target)
    probe = pod.spec["containers"][0]["livenessProbe"]
    # A checkpoint at the paper's size is some GB; a rank that hangs will not write one.
    assert pod.spec["terminationGracePeriodSeconds"] >= 600
    assert probe["terminationGracePeriodSeconds"] <= 60
    assert probe["timeoutSeconds"] > 10  # what alive.py itself waits for an answer


@pytest.mark.parametrize("target", [*JOBS, *GANGS])
def test_the_entrypoint_of_the_image_is_not_replaced(target: str) -> None:
    """The trap: `deepspeed` as process 1 hears no SIGTERM, and says 0 when its child was killed."""
    container = training(target).spec["containers"][0]
    assert "command" not in container
    assert container["args"][0] == "deepspeed"


@pytest.mark.parametrize("target", [target for target in JOBS if target != "overlays/smoke-cpu"])
def test_one_pod_a_node(target: str) -> None:
    pod = training(target)
    (rule,) = pod.spec["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert rule["labelSelector"]["matchLabels"].items() <= pod.labels.items()


def test_infiniband_is_not_left_to_luck() -> None:
    """The trap: without the device or IPC_LOCK NCCL takes TCP and says nothing."""
    pod = training("overlays/dgx1-8node")
    train = pod.spec["containers"][0]
    assert environment(train)["NCCL_NET"] == "IB"  # an error where it cannot be had
    names = [container["name"] for container in pod.spec["initContainers"]]
    assert names == ["rdma", "stage", "hostfile"]  # not after 50 GB are copied
    rdma = pod.container("rdma")
    assert rdma["securityContext"] == train["securityContext"]
    for container in (rdma, train):
        assert container["resources"]["limits"]["rdma/hca_shared_devices_a"] == "1"


def test_a_run_of_root_and_of_the_other_user_is_of_both() -> None:
    """`evaluate` in overlays/read, or another overlay (tests/unit/test_container.py: the umask)."""
    root, other = training("overlays/dgx1-8node"), training("base")
    (reader,) = pods(render("overlays/read"))
    assert root.spec["securityContext"]["runAsUser"] == 0
    for writer in (root, other):
        assert environment(writer.container("train"))["GANBERT_UMASK"] == "002"
    assert "\nGANBERT_UMASK=002\n" in (KUBERNETES / "overlays/mpijob/deepspeed_env").read_text()
    groups = {
        pod.spec["securityContext"][key]
        for pod in (root, other, reader)
        for key in ("runAsGroup", "fsGroup")
    }
    assert groups == {10001}


def test_a_v100_gets_what_runs_on_it() -> None:
    """The trap: current images have no code for compute capability 7.0."""
    pod = training("overlays/dgx1-8node")
    assert pod.spec["nodeSelector"]["nvidia.com/gpu.compute.major"] == "7"
    assert pod.spec["nodeSelector"]["nvidia.com/gpu.compute.minor"] == "0"
    settings = json.loads((KUBERNETES.parent / "ds_configs/paper/generator.json").read_text())
    assert "bf16" not in settings  # which a V100 does not have
    assert settings["fp16"]["enabled"] is True


def test_budgets_only_where_they_mean_something(target: str, documents: list[Document]) -> None:
    budgets = [d for d in documents if d["kind"] == "PodDisruptionBudget"]
    assert bool(budgets) == (target == "overlays/serve")


def test_kueue_gets_a_job_that_it_may_start() -> None:
    job = find(render("overlays/kueue"), "Job")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["suspend"] is True


@pytest.mark.parametrize("target", [*JOBS, *GANGS])
def test_network_of_the_training(target: str) -> None:
    """Ranks reach each other on every port (NCCL chooses), Prometheus the metrics, nobody more."""
    documents = render(target)
    policy = find(documents, "NetworkPolicy", "training")["spec"]
    among, scrape = policy["ingress"]
    assert among == {"from": [{"podSelector": policy["podSelector"]}]}
    assert [port["port"] for port in scrape["ports"]] == ["metrics"]
    outward, names = policy["egress"]
    assert outward == {"to": [{"podSelector": policy["podSelector"]}]}
    assert {(port["port"], port["protocol"]) for port in names["ports"]} == {
        (53, "UDP"),
        (53, "TCP"),
    }
    assert policy["podSelector"]["matchLabels"].items() <= training(target).labels.items()
    for pod in pods(documents):
        assert not pod.spec.get("hostNetwork"), "no policy would bind it"


def test_checkov_finds_nothing_that_is_not_justified(tmp_path: Path) -> None:
    checkov = tool("checkov")
    if checkov is None:
        pytest.skip("no checkov (make kubernetes-tools)")
    for target in TARGETS:
        (tmp_path / f"{target.replace('/', '-')}.yaml").write_text(rendered_text(target))
    settings = ["--config-file", KUBERNETES / ".checkov.yaml", "--output", "json"]
    done = subprocess.run(
        [checkov, *settings, "--directory", tmp_path],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    report = json.loads(done.stdout)
    report = report[0] if isinstance(report, list) else report
    failed = {
        f"{one['check_id']} {Path(one['file_path']).stem} {one['resource']}: {one['check_name']}"
        for one in report["results"]["failed_checks"]
    }
    assert failed == set()
    assert report["summary"]["passed"] > 500
    skipped: dict[str, set[str]] = {}
    for one in report["results"]["skipped_checks"]:
        assert one["check_result"]["suppress_comment"]
        skipped.setdefault(Path(one["file_path"]).stem, set()).add(one["check_id"])
    assert skipped == {
        "overlays-dgx1-8node": {"CKV_K8S_23", "CKV_K8S_25", "CKV_K8S_40"},  # IPC_LOCK
        "overlays-load": {"CKV_K8S_8", "CKV_K8S_9"},  # it sleeps
        "overlays-read": {"CKV_K8S_8", "CKV_K8S_9"},
    }

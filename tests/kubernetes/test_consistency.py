"""Numbers, names, paths and arguments of the manifests fit each other, the code and the image."""

import re
from pathlib import Path

import pytest
import typer
from deepspeed.launcher.runner import parse_args

from ganbert import __version__
from ganbert.cli import app
from ganbert.recipe import load_recipe
from ganbert.train_options import parse_options

from .manifests import (
    KUBERNETES,
    ROOT,
    Document,
    Pod,
    environment,
    expanded,
    find,
    pods,
    render,
    walk,
)

IN_IMAGE = Path("/opt/ganbert")  # its working folder
COMPONENT = "app.kubernetes.io/component"
TRAINING = [
    "base", "overlays/single-node", "overlays/dgx1-8node", "overlays/smoke-cpu", "overlays/kueue",
    "overlays/jobset", "overlays/trainer-v2",
]  # fmt: skip
SIZES = {"overlays/single-node": (1, 8), "overlays/smoke-cpu": (2, 1)}


def training_pod(documents: list[Document]) -> Pod:
    return next(pod for pod in pods(documents) if "--no_ssh" in str(pod.spec))


def deepspeed_words(words: list[str]) -> list[str]:
    """What stands behind `deepspeed` in a command."""
    return words[words.index("deepspeed") + 1 :]


@pytest.mark.parametrize("target", TRAINING)
def test_nodes_by_slots_are_the_ranks_everywhere(target: str) -> None:
    documents = render(target)
    nodes, slots = SIZES.get(target, (8, 8))
    size = find(documents, "ConfigMap", "ganbert-size")["data"]
    assert size == {"nodes": str(nodes), "slots": str(slots)}
    pod = training_pod(documents)
    train, hostfile = pod.spec["containers"][0], environment(pod.container("hostfile"))
    assert (hostfile["GANBERT_NODES"], hostfile["GANBERT_SLOTS"]) == (str(nodes), str(slots))
    options = parse_args(deepspeed_words(expanded(train, {"JOB_COMPLETION_INDEX": "0"})))
    assert options.num_nodes == nodes
    assert options.master_addr == hostfile["GANBERT_HOSTS"].replace("INDEX", "0")
    gpus = train["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == (None if target == "overlays/smoke-cpu" else str(slots))
    jobs = [node for document in documents for node in walk(document) if "completionMode" in node]
    (job,) = jobs
    assert (job["completions"], job["parallelism"]) == (nodes, nodes)
    assert job["completionMode"] == "Indexed"


@pytest.mark.parametrize("target", TRAINING)
def test_names_of_pods_are_those_in_the_hostfile(target: str) -> None:
    documents = render(target)
    pod = training_pod(documents)
    hosts = environment(pod.container("hostfile"))["GANBERT_HOSTS"]
    kind, name = pod.owner.split("/")
    if kind == "Job":  # <job>-<index>.<subdomain>, where the subdomain is a headless service
        service = find(documents, "Service", pod.spec["subdomain"])
        assert hosts == f"{name}-INDEX.{service['metadata']['name']}"
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True
        assert service["spec"]["selector"].items() <= pod.labels.items()
    else:  # <jobset>-<replicated job>-<replica>-<index>.<jobset>
        owner = find(documents, "TrainJob" if kind == "TrainingRuntime" else kind)
        template = find(documents, kind)["spec"]
        template = template.get("template", {}).get("spec", template)
        assert template["network"]["publishNotReadyAddresses"] is True
        (replicated,) = template["replicatedJobs"]
        jobset = owner["metadata"]["name"]
        assert replicated["replicas"] == 1
        assert hosts == f"{jobset}-{replicated['name']}-0-INDEX.{jobset}"
        assert "subdomain" not in pod.spec


def test_trainjob_and_its_runtime_agree() -> None:
    documents = render("overlays/trainer-v2")
    job, runtime = find(documents, "TrainJob"), find(documents, "TrainingRuntime")
    reference = job["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == (runtime["kind"], runtime["metadata"]["name"])
    assert job["spec"]["trainer"]["numNodes"] == runtime["spec"]["mlPolicy"]["numNodes"] == 8
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    step = "trainer.kubeflow.org/trainjob-ancestor-step"
    assert replicated["template"]["metadata"]["labels"][step] == "trainer"
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    assert container["name"] == "node"


@pytest.mark.parametrize("target", [*TRAINING, "overlays/mpijob"])
def test_training_commands_are_parsed_by_deepspeed_and_train(target: str, tmp_path: Path) -> None:
    commands = [
        (pod, container, expanded(container, {"JOB_COMPLETION_INDEX": "3"}))
        for pod in pods(render(target))
        for container in pod.containers
        if "deepspeed" in (*container.get("command", []), *container.get("args", []))
    ]
    ((pod, container, words),) = commands
    assert not [word for word in words if "$(" in word]
    launcher = parse_args(deepspeed_words(words))
    assert launcher.user_script == "ganbert/train.py"
    assert (ROOT / launcher.user_script).is_file()
    assert launcher.master_port == 29500
    if target == "overlays/mpijob":
        assert launcher.hostfile == "/etc/mpi/hostfile"
        assert launcher.no_ssh_check
    else:
        assert launcher.hostfile == "/job/hostfile"
        assert launcher.no_ssh
        assert launcher.node_rank == 3
        assert launcher.master_addr  # without it the launcher asks by ssh
    variables = environment(container)
    if target == "overlays/mpijob":
        variables = handed_on(render(target))
    options = parse_options(launcher.user_args, variables)
    assert options.data in (Path("/data/prepared"), Path("/cache/prepared"))
    assert options.output.parent == Path("/runs")
    folder = recipe_folder(render(target), pod, container, options.config, tmp_path)
    recipe = load_recipe(folder)
    if target != "overlays/mpijob":
        check_metrics_port(container, recipe.run.metrics_port)


def recipe_folder(
    documents: list[Document], pod: Pod, container: Document, config: Path, tmp_path: Path
) -> Path:
    """Where the recipe of a command lies here; one from a ConfigMap is written down."""
    if not config.is_absolute():  # in the image
        return ROOT / config
    (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == str(config)]
    (volume,) = [one for one in pod.spec["volumes"] if one["name"] == mount["name"]]
    for name, text in find(documents, "ConfigMap", volume["configMap"]["name"])["data"].items():
        (tmp_path / name).write_text(text.replace(str(IN_IMAGE), str(ROOT)))
    return tmp_path


def check_metrics_port(container: Document, port: int) -> None:
    (served,) = [one for one in container["ports"] if one["name"] == "metrics"]
    assert served["containerPort"] == port
    assert f"--port={port}" in container["livenessProbe"]["exec"]["command"]


@pytest.mark.parametrize("verb", ["prepare", "infer", "serve"])
def test_verbs_are_parsed_by_the_command_line(verb: str) -> None:
    command = typer.main.get_command(app)
    if verb not in command.commands:
        pytest.skip(f"`ganbert {verb}` is not in this version's command line")
    (pod,) = pods(render(f"overlays/{verb}"))
    (container,) = pod.containers
    words = expanded(container, {})
    if words[0] == "bash":  # prepare.sh and shard.sh hand all of theirs on
        arguments = words[2:]
        arguments += ["--participant-label=01", "--participant-label=02"] * (verb == "infer")
    else:
        assert words[:2] == ["ganbert", verb]
        arguments = words[2:]
    command.commands[verb].make_context(verb, arguments)


def test_images_are_of_this_version(documents: list[Document]) -> None:
    for pod in pods(documents):
        for container in pod.containers:
            assert container["image"] in {f"ganbert:{__version__}-{k}" for k in ("train", "infer")}
            assert container["imagePullPolicy"] == "IfNotPresent"


def test_a_pod_says_itself_why_it_ended(documents: list[Document]) -> None:
    """The one line of a mistake, for who has no log of a pod that is gone."""
    for pod in pods(documents):
        for container in pod.containers:
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_what_a_pod_names_is_there(documents: list[Document]) -> None:
    for pod in pods(documents):
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        mounted = [m["name"] for c in pod.containers for m in c["volumeMounts"]]
        assert set(mounted) == set(volumes), f"{pod.owner}: a volume nobody mounts, or the reverse"
        find(documents, "ServiceAccount", pod.spec["serviceAccountName"])
        for volume in volumes.values():
            if "configMap" in volume:
                find(documents, "ConfigMap", volume["configMap"]["name"])
            if "secret" in volume:  # made by the user, by the command in the comment and README.md
                name = volume["secret"]["secretName"]
                assert f"create secret generic {name} " in (KUBERNETES / "README.md").read_text()
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                find(documents, "PersistentVolumeClaim", claim)


def mount_of(container: Document, path: str) -> Document | None:
    """The mount that a path of a container lies on; the longest one that fits."""
    fitting = [
        mount
        for mount in container["volumeMounts"]
        if f"{path}/".startswith(mount["mountPath"] + "/")
    ]
    return max(fitting, key=lambda mount: len(mount["mountPath"]), default=None)


def test_files_of_a_command_are_mounted(documents: list[Document]) -> None:
    for pod in pods(documents):
        for container in pod.containers:
            words = [*expanded(container, {}), *environment(container).values()]
            probe = container.get("livenessProbe", {}).get("exec", {}).get("command", [])
            text = "\n".join(words + probe)
            for path in re.findall(r"(?:^|[ =])(/(?!usr/)[\w./-]+)", text, re.MULTILINE):
                if path == "/etc/mpi/hostfile":  # the operator's mount
                    continue
                mount = mount_of(container, path)
                assert mount is not None, f"{pod.owner} {container['name']}: {path}"
                check_file(documents, pod, mount, path)


def check_file(documents: list[Document], pod: Pod, mount: Document, path: str) -> None:
    (volume,) = [one for one in pod.spec["volumes"] if one["name"] == mount["name"]]
    if "configMap" in volume and path != mount["mountPath"]:
        config_map = find(documents, "ConfigMap", volume["configMap"]["name"])
        assert Path(path).name in config_map["data"], path


def test_data_are_read_only_where_nobody_writes_them(documents: list[Document]) -> None:
    writers = {"prepare", "phantom", "load"}
    for pod in pods(documents):
        for container in pod.containers:
            for mount in container["volumeMounts"]:
                if mount["mountPath"] == "/data":
                    assert mount.get("readOnly", False) == (container["name"] not in writers)


def test_selectors_find_pods_and_every_pod_has_a_policy(documents: list[Document]) -> None:
    found = pods(documents)
    policies = [d for d in documents if d["kind"] == "NetworkPolicy"]
    assert any(d["spec"]["podSelector"] == {} for d in policies), "no policy closes the namespace"
    selectors = [
        d["spec"]["podSelector"]["matchLabels"] for d in policies if d["spec"]["podSelector"]
    ]
    selectors += [d["spec"]["selector"] for d in documents if d["kind"] == "Service"]
    selectors += [
        d["spec"]["selector"]["matchLabels"]
        for d in documents
        if d["kind"] in ("Deployment", "PodDisruptionBudget")
    ]
    for selector in selectors:
        assert any(selector.items() <= pod.labels.items() for pod in found), selector
    assert {d["metadata"]["namespace"] for d in policies} >= {
        d["metadata"]["namespace"] for d in documents if d["kind"] in ("Job", "Deployment")
    }


def test_labels_are_the_recommended_ones(documents: list[Document]) -> None:
    for document in documents:
        labels = document["metadata"].get("labels", {})
        assert labels.get("app.kubernetes.io/name") == "ganbert", document["metadata"]["name"]
        assert labels.get("app.kubernetes.io/part-of") == "ganbert"
    for pod in pods(documents):
        assert pod.labels["app.kubernetes.io/name"] == "ganbert"
        assert pod.labels["app.kubernetes.io/component"] in {
            "training", "prepare", "inference", "serve", "launcher", "read", "load",
        }  # fmt: skip


def handed_on(documents: list[Document]) -> dict[str, str]:
    """What DeepSpeed sets for the ranks that it starts over ssh."""
    text = find(documents, "ConfigMap", "ganbert-ssh")["data"]["deepspeed_env"]
    return dict(line.split("=", 1) for line in text.splitlines())


def test_mpijob_hands_the_workers_environment_on() -> None:
    """pdsh drops what DeepSpeed does not know; the file brings what a worker's container sets."""
    documents = render("overlays/mpijob")
    worker, launcher = sorted(pods(documents), key=lambda pod: pod.labels[COMPONENT], reverse=True)
    # They are in the arguments of the Job's command.
    not_for_ranks = {"GANBERT_NODES", "GANBERT_MASTER"}
    wanted = environment(worker.container("train"))
    wanted = {name: value for name, value in wanted.items() if name not in not_for_ranks}
    assert handed_on(documents) == wanted
    container = launcher.container("launcher")
    assert environment(container)["DS_ENV_FILE"] == "/etc/ganbert/ssh/deepspeed_env"
    job = find(documents, "MPIJob")["spec"]
    assert job["slotsPerWorker"] == 8
    assert job["mpiReplicaSpecs"]["Worker"]["replicas"] == 8
    assert environment(container)["GANBERT_NODES"] == "8"
    assert job["mpiImplementation"] == "OpenMPI"  # whose form of the hostfile DeepSpeed reads
    mounted = {mount["mountPath"] for mount in worker.container("train")["volumeMounts"]}
    assert {"/data", "/runs"} <= mounted


def test_mpijob_speaks_ssh_on_one_port_with_the_operators_keys() -> None:
    documents = render("overlays/mpijob")
    files = find(documents, "ConfigMap", "ganbert-ssh")["data"]
    job = find(documents, "MPIJob")["spec"]
    port, keys = 2222, job["sshAuthMountPath"]
    assert f"Port {port}\n" in files["sshd_config"]
    assert f"Port {port}\n" in files["ssh_config"]
    assert f"HostKey {keys}/id_rsa\n" in files["sshd_config"]
    assert f"AuthorizedKeysFile {keys}/authorized_keys\n" in files["sshd_config"]
    assert f"IdentityFile {keys}/id_rsa\n" in files["ssh_config"]
    text = str(job)
    assert f"--ssh_port={port}" in text
    assert f"'tcpSocket': {{'port': {port}}}" in text
    opened = find(documents, "NetworkPolicy", "from-launcher")["spec"]["ingress"][0]["ports"]
    assert opened == [{"port": port, "protocol": "TCP"}]


def test_the_service_has_the_time_that_it_promises() -> None:
    documents = render("overlays/serve")
    (pod,) = pods(documents)
    (container,) = pod.containers
    (drain,) = [word for word in container["command"] if word.startswith("--drain-seconds=")]
    stop = container["lifecycle"]["preStop"]["exec"]["command"]
    needed = int(drain.partition("=")[2]) + int(stop[1])
    assert pod.spec["terminationGracePeriodSeconds"] > needed
    (port,) = container["ports"]
    assert f"--port={port['containerPort']}" in container["command"]
    assert "replicas" not in find(documents, "Deployment")["spec"]  # the autoscaler's
    scaled = find(documents, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert scaled["name"] == find(documents, "Deployment")["metadata"]["name"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]


def test_the_service_computes_on_the_cores_that_its_autoscaler_counts_in() -> None:
    (pod,) = pods(render("overlays/serve"))
    (container,) = pod.containers
    (threads,) = [one for one in container["env"] if one["name"] == "OMP_NUM_THREADS"]
    source = threads["valueFrom"]["resourceFieldRef"]
    assert source == {"containerName": container["name"], "resource": "requests.cpu"}
    assert container["resources"]["requests"]["cpu"] == "4"

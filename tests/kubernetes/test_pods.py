"""The smoke overlay as two pods on this machine: what is rendered is run, and hit by accidents.

Each accident is met as the Job's podFailurePolicy says, and each time all pods start again, as the
Job would start them. At the end the training has reached its last step, without a person.
"""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ganbert.checkpoint_files import list_checkpoints
from ganbert.data.phantom import make_cohort
from ganbert.errors import EXIT_INTERRUPTED
from tests.cluster.hosts import missing

from .manifests import find, pods, render
from .policies import action
from .sandbox import Pods, exit_codes, kill, lacking, pods_of

TARGET = "overlays/smoke-cpu"
NUM_PODS = 2
SECONDS = 200
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing() or lacking()), reason=str(missing() or lacking())),
]


@pytest.fixture(scope="module")
def made() -> Iterator[Pods]:
    documents = render(TARGET)
    (pod,) = pods(documents)
    names = [f"{pod.owner.split('/')[1]}-{index}" for index in range(NUM_PODS)]
    with pods_of(documents, dict.fromkeys(names, pod), pod.spec["subdomain"]) as found:
        yield found


def run_in_all(made: Pods, name: str) -> list[str]:
    """Run an init container in all pods at once; return what it printed."""
    results = exit_codes([made.start_container(name, k) for k in range(NUM_PODS)], SECONDS)
    for code, output in results:
        assert code == 0, output
    return [output for _, output in results]


def start_all(made: Pods) -> list[subprocess.Popen[str]]:
    """Start every pod as the kubelet does: init containers in order, then the training."""
    for container in made.templates[0].spec["initContainers"]:
        run_in_all(made, container["name"])
    return [made.start_container("train", index) for index in range(NUM_PODS)]


def run_folder(made: Pods) -> Path:
    return made.volume("runs", 0) / "smoke"


def steps(made: Pods) -> int:
    log = run_folder(made) / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def wait_for_step(made: Pods, step: int, started: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + SECONDS
    while steps(made) < step:
        for process in started:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.1)


def process_of(made: Pods, started: subprocess.Popen[str], word: str) -> psutil.Process:
    """The first process of a container with a word in its command line."""
    for process in made.first_process(started).children(recursive=True):
        if any(word in one for one in process.cmdline()):
            return process
    raise AssertionError(f"no {word}")


def actions(made: Pods, started: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """How each pod ended, and what the Job would do."""
    job = find(render(TARGET), "Job")["spec"]
    return [(code, action(job, code)) for code, _ in exit_codes(started, SECONDS)]


def test_pods_meet_train_and_survive_accidents(made: Pods) -> None:
    started = start_all(made)
    wait_for_step(made, 2, started)
    for process in started:
        probe = made.templates[0].container("train")["livenessProbe"]["exec"]["command"]
        done = made.inside(process, *probe)
        assert done.returncode == 0, done.stdout + done.stderr
        # Process 1 cannot write where the manifest gives it nothing to write.
        assert made.inside(process, "touch", "/opt/ganbert/x", "/etc/x", "/data/x").returncode == 1
        assert made.first_process(process).uids().real == 10001

    # The launcher's part that watches the ranks is killed: alone it would say 0 (a Succeeded pod).
    kill(process_of(made, started[0], "deepspeed.launcher.launch"))
    (code, first), (_, second) = actions(made, started)
    assert code not in (0, EXIT_INTERRUPTED)
    assert (first, second) == ("Count", "Ignore")

    # SIGTERM to process 1 of one pod, as a drained node sends it: all save at the same step.
    started = start_all(made)
    before = steps(made)
    assert before >= 2
    wait_for_step(made, before + 2, started)
    made.first_process(started[1]).send_signal(signal.SIGTERM)
    assert actions(made, started) == [(EXIT_INTERRUPTED, "Ignore")] * NUM_PODS
    saved = json.loads((list_checkpoints(run_folder(made))[-1] / "state.json").read_text())["step"]
    assert saved == steps(made)

    # A rank is killed (out of memory): all end, and each pod counts one accident.
    started = start_all(made)
    wait_for_step(made, saved + 2, started)
    kill(process_of(made, started[0], "--local_rank="))
    results = actions(made, started)
    assert [what for _, what in results] == ["Count", "Count"], results

    started = start_all(made)
    results = exit_codes(started, SECONDS)
    assert [code for code, _ in results] == [0, 0], results
    assert "2 ranks on cpu, from step" in results[0][1]
    assert (run_folder(made) / "export" / "generator.safetensors").is_file()


def test_a_pod_that_waits_for_another_leaves_at_once(made: Pods) -> None:
    """A Job is suspended while the eighth node is missing."""
    container = made.templates[0].container("hostfile")
    (hosts,) = [one for one in container["env"] if one["name"] == "GANBERT_HOSTS"]
    former, hosts["value"] = hosts["value"], "ganbert-nowhere-INDEX.invalid"
    try:
        waiting = made.start_container("hostfile", 0)
        assert waiting.stdout is not None
        said = waiting.stdout.readline()
        assert waiting.poll() is None
        made.first_process(waiting).send_signal(signal.SIGTERM)
        ((code, _),) = exit_codes([waiting], SECONDS)
    finally:
        hosts["value"] = former
    assert code == 143
    assert "waiting for the pod ganbert-nowhere-0.invalid" in said
    assert action(find(render(TARGET), "Job")["spec"], code) == "Ignore"


def test_prepare_and_infer_run_as_rendered(tiny_export: Path) -> None:
    """The other two Jobs: their users, read-only roots, volumes and scripts, on tiny images."""
    documents = [*render("overlays/prepare"), *render("overlays/infer")]
    prepare, infer = pods(documents)
    (container,) = prepare.containers
    smaller = {"--size=paper": "--size=tiny", "--jobs=16": "--jobs=1"}
    container["args"] = [smaller.get(word, word) for word in container["args"]]
    (shards,) = [one for one in infer.container("infer")["env"] if "SHARDS" in one["name"]]
    shards["value"] = "2"
    names = ["ganbert-infer-0", "ganbert-infer-1", "ganbert-prepare"]
    with pods_of(documents, dict(zip(names, (infer, infer, prepare), strict=True)), "none") as made:
        bids = made.volume("data", 2) / "bids"
        make_cohort(bids, num_subjects=16, tracer="AV45", seed=1, size="tiny", jobs=1)
        shutil.copytree(tiny_export, made.volume("runs", 0) / "av45" / "export")
        ((code, output),) = exit_codes([made.start_container("prepare", 2)], SECONDS)
        assert code == 0, output
        assert (made.volume("data", 2) / "prepared" / "index.json").is_file()
        shares = [made.start_container("infer", index) for index in range(2)]
        for code, output in exit_codes(shares, SECONDS):
            assert code == 0, output
            assert "8 of 16 subjects" in output
        made_pets = sorted(
            (made.volume("runs", 0) / "derivatives").rglob("*_desc-synth_pet.nii.gz")
        )
        assert len(made_pets) == 16

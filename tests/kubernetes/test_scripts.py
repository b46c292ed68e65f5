"""The scripts in the manifests: shellcheck, and what each does when all is well, and when not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ganbert.data.phantom import make_cohort
from ganbert.errors import EXIT_USER_ERROR
from ganbert.exporter import PrometheusSink
from ganbert.folder_lock import LOCK_NAME
from ganbert.step_stats import StepStats

from .manifests import KUBERNETES, TARGETS, find, render

SCRIPTS = KUBERNETES / "base" / "scripts"
LOCAL_CACHE, INFINIBAND = (
    KUBERNETES / "components/local-cache",
    KUBERNETES / "components/infiniband",
)
BIN = Path(sys.executable).parent
STOPPED_BEFORE_SAVING = 143  # 128 + SIGTERM; the Job counts no accident for it


def scripts() -> dict[str, str]:
    """Every script that a rendered manifest brings into a pod."""
    return {
        f"{target} {name}": text
        for target in TARGETS
        for document in render(target)
        if document["kind"] == "ConfigMap"
        for name, text in document["data"].items()
        if text.startswith("#!")
    }


def run(script: Path, *words: object, **environment: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", script, *map(str, words)],
        capture_output=True, text=True, timeout=200, check=False,
        env={"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(KUBERNETES.parent)}
        | {name: str(value) for name, value in environment.items()},
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a mistake, with its exit code."""
    assert done.returncode == EXIT_USER_ERROR, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ganbert: error: ")
    assert "expected" in line
    assert "found" in line
    return line


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck (apt)")
def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    found = {text: name for name, text in scripts().items()}
    assert len(found) >= 6
    for number, text in enumerate(found):
        (tmp_path / f"{number}.sh").write_text(text)
    files = [*sorted(tmp_path.glob("*.sh")), Path(__file__).with_name("pod.sh")]
    files.append(KUBERNETES / "wait.sh")
    done = subprocess.run(
        ["shellcheck", "--enable=all", "--exclude=SC2310,SC2312,SC2250,SC2311", *files],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_no_command_hides_a_script_from_shellcheck() -> None:
    for target in TARGETS:
        for document in render(target):
            assert "'-c'," not in str(document), f"{target}: write it into a file"


# ---- alive.py ----------------------------------------------------------------------------------
class Probe:
    """The liveness probe beside a real endpoint; time goes by in what it remembers alone."""

    def __init__(self, folder: Path, port: int) -> None:
        self._state = folder / "alive"
        self._words = [sys.executable, SCRIPTS / "alive.py", f"--port={port}"]
        self._words += [f"--state={self._state}"]

    def wait(self, seconds: float) -> None:
        state = json.loads(self._state.read_text())
        state["changed"] -= seconds
        self._state.write_text(json.dumps(state))

    def passes(self, *options: str) -> bool:
        done = subprocess.run(
            [*self._words, *options], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode in (0, 1), done.stderr
        assert (done.returncode == 1) == ("no step" in done.stdout)
        return done.returncode == 0


def stats(step: int, seconds: float) -> StepStats:
    return StepStats(
        step=step, samples_seen=step, epoch=0.0, seconds=seconds, volumes_per_second=1.0,
        data_wait_seconds=0.0, learning_rate_generator=1e-4, loss_l1=1.0,
    )  # fmt: skip


def test_a_hang_is_told_from_a_slow_step(tmp_path: Path) -> None:
    sink = PrometheusSink(0)
    probe = Probe(tmp_path, sink.port)
    try:
        sink.write(stats(1, 0.01), 1)
        assert probe.passes()
        probe.wait(1500)
        sink.write(stats(2, 0.01), 1)
        assert probe.passes(), "there was a step"
        probe.wait(1500)
        assert not probe.passes(), "steps of 10 ms, and none for 25 minutes: it hangs"
        sink.write(stats(3, 300.0), 1)
        assert probe.passes()
        probe.wait(1500)
        assert probe.passes(), "a step takes minutes: it is only slow"
    finally:
        sink.close()


def test_a_checkpoint_is_a_sign_of_life_and_may_take_its_time(tmp_path: Path) -> None:
    sink = PrometheusSink(0)
    probe = Probe(tmp_path, sink.port)
    try:
        sink.write(stats(1, 0.01), 1)
        assert probe.passes()
        probe.wait(1500)
        sink.saved(1, 400.0, 1000)
        assert probe.passes()
        probe.wait(1500)
        assert probe.passes(), "checkpoints take minutes here"
    finally:
        sink.close()


def test_an_endpoint_that_went_silent_is_a_hang(tmp_path: Path) -> None:
    sink = PrometheusSink(0)
    probe = Probe(tmp_path, sink.port)
    sink.write(stats(1, 0.01), 1)
    assert probe.passes()
    sink.close()
    assert probe.passes(), "it may be leaving"
    probe.wait(1500)
    assert not probe.passes()


def test_a_start_has_its_own_patience(tmp_path: Path) -> None:
    probe = Probe(tmp_path, 1)  # nobody answers there
    assert probe.passes("--start=1000")
    probe.wait(1500)
    assert not probe.passes("--start=1000")


# ---- rdma.sh -----------------------------------------------------------------------------------
def test_a_pod_without_infiniband_says_so(tmp_path: Path) -> None:
    line = refused(run(INFINIBAND / "rdma.sh", GANBERT_VERBS=tmp_path))
    assert "found none" in line


def test_a_pod_that_may_not_pin_memory_says_so(tmp_path: Path) -> None:
    """The trap behind the trap: IPC_LOCK that is added to a user other than root has no effect."""
    (tmp_path / "uverbs0").touch()
    script = INFINIBAND / "rdma.sh"
    limited = ["prlimit", "--memlock=65536:65536"]
    without = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    environment = {"PATH": os.environ["PATH"], "GANBERT_VERBS": str(tmp_path)}
    if os.geteuid() != 0:
        without = []
    done = subprocess.run(
        [*limited, *without, "bash", script], capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip
    assert "64 KiB" in refused(done)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have a capability in effect")
def test_one_capability_is_enough(tmp_path: Path) -> None:
    (tmp_path / "uverbs0").touch()
    only = ["setpriv", "--bounding-set=-all,+ipc_lock", "--inh-caps=-all,+ipc_lock"]
    done = subprocess.run(
        ["prlimit", "--memlock=65536:65536", *only, "bash", INFINIBAND / "rdma.sh"],
        capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "GANBERT_VERBS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 adapters" in done.stdout


# ---- stage.sh ----------------------------------------------------------------------------------
def test_staging_copies_whole_and_once(tmp_path: Path) -> None:
    source, to = tmp_path / "prepared", tmp_path / "cache" / "prepared"
    to.parent.mkdir()
    assert "ganbert prepare" in refused(run(LOCAL_CACHE / "stage.sh", source, to))
    (source / "cache").mkdir(parents=True)
    (source / "index.json").write_text("{}")
    (source / "cache" / "row").write_text("voxels")
    os.utime(source / "cache" / "row", (1, 1))
    (to.parent / "prepared.partial").mkdir()  # of a pod's earlier try
    assert run(LOCAL_CACHE / "stage.sh", source, to).returncode == 0
    assert (to / "cache" / "row").read_text() == "voxels"
    assert (to / "cache" / "row").stat().st_mtime == 1
    assert sorted(path.name for path in to.parent.iterdir()) == ["prepared"]
    (source / "cache" / "row").write_text("others")
    assert run(LOCAL_CACHE / "stage.sh", source, to).returncode == 0
    assert (to / "cache" / "row").read_text() == "voxels"


def test_staging_to_where_nothing_can_be_made_is_a_mistake(tmp_path: Path) -> None:
    """With exit code 1 the Job would try it ten times more."""
    source = tmp_path / "prepared"
    source.mkdir()
    (source / "index.json").write_text("{}")
    (tmp_path / "file").touch()
    for to in (tmp_path / "nowhere" / "prepared", tmp_path / "file" / "prepared"):
        assert str(to) in refused(run(LOCAL_CACHE / "stage.sh", source, to))
    assert "FROM and TO" in refused(run(LOCAL_CACHE / "stage.sh", source))


def test_staging_that_is_stopped_stops_at_once(tmp_path: Path) -> None:
    """A drain during the copy of 50 GB: neither waits for it, nor is killed and counted for it."""
    source, slow = tmp_path / "prepared", tmp_path / "bin" / "cp"
    source.mkdir()
    (source / "index.json").write_text("{}")
    slow.parent.mkdir()
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/began\nexec sleep 600\n")
    slow.chmod(0o755)
    process = subprocess.Popen(
        ["bash", LOCAL_CACHE / "stage.sh", source, tmp_path / "copy"],
        env={"PATH": f"{slow.parent}:{os.environ['PATH']}"}, start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 30
        while not (tmp_path / "began").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == STOPPED_BEFORE_SAVING
        assert not (tmp_path / "copy").exists()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


# ---- prepare.sh and shard.sh, with the real commands -------------------------------------------
@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "bids"
    make_cohort(folder, num_subjects=5, tracer="AV45", seed=2, size="tiny", jobs=1)
    return folder


def test_refused_pairs_are_no_failure(bids: Path, tmp_path: Path) -> None:
    script = KUBERNETES / "overlays/prepare/prepare.sh"
    cohort = tmp_path / "bids"
    shutil.copytree(bids, cohort)
    broken = next(cohort.glob("sub-*/pet/*_pet.nii.gz"))
    broken.write_bytes(b"torn")
    done = run(script, cohort, tmp_path / "prepared", "--size", "tiny", "--jobs", 1)
    assert done.returncode == 0, done.stderr
    assert "prepare-report.tsv" in done.stdout
    done = run(script, tmp_path / "nothing", tmp_path / "other", "--size", "tiny")
    assert done.returncode == EXIT_USER_ERROR


def test_the_phantom_is_made_by_as_many_processes_as_it_has_cpus(tmp_path: Path) -> None:
    """The trap: a process a core of the node, and 64 of them are killed for want of memory."""
    job = find(render("overlays/smoke-cpu"), "Job")
    (phantom,) = [
        one for one in job["spec"]["template"]["spec"]["initContainers"] if one["name"] == "phantom"
    ]
    command = tmp_path / "bin" / "ganbert"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/words\n')
    command.chmod(0o755)
    done = run(
        KUBERNETES / "overlays/smoke-cpu/phantom.sh",
        PATH=f"{command.parent}:{os.environ['PATH']}", JOB_COMPLETION_INDEX=0,
        GANBERT_DATA_FOLDER=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in (tmp_path / "words").read_text().splitlines()]
    assert [words[0] for words in commands] == ["phantom", "prepare"]
    for words in commands:
        assert words[words.index("--jobs") + 1] == phantom["resources"]["requests"]["cpu"]


def test_a_prepare_that_is_stopped_stops(tmp_path: Path) -> None:
    """As process 1 bash would hear no SIGTERM, and `prepare` would be killed after the grace."""
    bids = tmp_path / "bids"  # so large that it is not done before it hears of it
    make_cohort(bids, num_subjects=40, tracer="AV45", seed=2, size="tiny", jobs=2)
    script = KUBERNETES / "overlays/prepare/prepare.sh"
    words = ["bash", script, bids, tmp_path / "prepared", "--size=tiny", "--jobs=1"]
    started = subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (tmp_path / "prepared" / LOCK_NAME).exists():
        assert time.monotonic() < end
        time.sleep(0.005)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=60)
    assert started.returncode == STOPPED_BEFORE_SAVING
    with pytest.raises(ProcessLookupError):
        os.killpg(started.pid, 0)  # nothing is left of its session


def test_the_code_of_a_prepare_that_is_stopped_is_its_own(tmp_path: Path) -> None:
    """Bash's `wait` returns 143 when the signal comes, whatever the command makes of it."""
    command, began = tmp_path / "bin" / "ganbert", tmp_path / "began"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\nimport os, pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(7))\n"
        f"pathlib.Path({str(began)!r}).touch()\ntime.sleep(600)\n"
    )
    command.chmod(0o755)
    codes = []
    for _ in range(20):  # it depends on which of the two bash hears of first
        began.unlink(missing_ok=True)
        process = subprocess.Popen(
            ["bash", KUBERNETES / "overlays/prepare/prepare.sh"],
            env={"PATH": f"{command.parent}:{os.environ['PATH']}"},
        )
        end = time.monotonic() + 30
        while not began.exists():
            assert time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        codes.append(process.wait(30))
    assert codes == [7] * 20


def test_shares_are_disjoint_and_together_are_all(
    bids: Path, tiny_export: Path, tmp_path: Path
) -> None:
    script = KUBERNETES / "overlays/infer/shard.sh"
    cohort, out, shards = tmp_path / "bids", tmp_path / "out", 3
    shutil.copytree(bids, cohort)
    (cohort / "sub-empty").mkdir()  # without a T1w
    started = [
        subprocess.Popen(
            list(map(str, ["bash", script, cohort, out, "participant", "--model", tiny_export])),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {
                "PATH": f"{BIN}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": str(index),
                "GANBERT_SHARDS": str(shards),
            },
        )
        for index in reversed(range(shards))  # the first share comes last
    ]  # fmt: skip
    outputs = [process.communicate(timeout=250)[0] for process in started]
    assert [process.returncode for process in started] == [0] * shards, outputs
    subjects = sorted(path.name for path in bids.glob("sub-*"))
    for subject in subjects:
        assert len(list((out / subject).rglob("*_desc-synth_pet.nii.gz"))) == 1
    assert sum("left out: sub-empty" in text for text in outputs) == 1
    assert (out / "dataset_description.json").is_file()


def test_more_shares_than_subjects_and_no_subjects(bids: Path, tmp_path: Path) -> None:
    script = KUBERNETES / "overlays/infer/shard.sh"
    done = run(
        script, bids, tmp_path / "out", "participant", JOB_COMPLETION_INDEX=7, GANBERT_SHARDS=8
    )
    assert (done.returncode, done.stdout) == (0, "ganbert: no subject for share 7 of 8\n")
    done = run(script, tmp_path, tmp_path / "out", JOB_COMPLETION_INDEX=0, GANBERT_SHARDS=8)
    assert "sub-*" in refused(done)


def test_a_share_does_not_wait_for_ever_for_the_first(bids: Path, tmp_path: Path) -> None:
    """Wrong arguments fail the first share; the others hold GPUs, and must say the same."""
    share = {"JOB_COMPLETION_INDEX": 1, "GANBERT_SHARDS": 2, "GANBERT_WAIT_SECONDS": 2}
    words = [bids, tmp_path / "out", "participant", "--model", tmp_path / "none.safetensors"]
    done = run(KUBERNETES / "overlays/infer/shard.sh", *words, **share)
    assert done.returncode == EXIT_USER_ERROR, done.stdout + done.stderr

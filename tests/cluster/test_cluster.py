"""The user's own command on eight hosts: over ssh and pdsh, and started by each node itself."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from ganbert.checkpoint_files import find_damage, list_checkpoints, read_state
from ganbert.data.index import load_index
from ganbert.sample_log import read_samples

from .conftest import NUM_HOSTS
from .hosts import Cluster, finish_all

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).parents[1] / "data" / "recipe_tiny"
BIN = Path(sys.executable).parent
PORT, METRICS_PORT = 29500, 9808
DEADLINE_SECONDS = 400
NODE_TIMEOUT_SECONDS = 15
# For what follows then, on a busy machine too; were it not asked for, 180 s would be the time.
NO_HANG_SECONDS = 60
# As docs/cluster.md has it: (2 + 1) x 5 s is the ranks' own time.
SSH_GIVES_UP = "-o ServerAliveInterval=5 -o ServerAliveCountMax=2"
STEPS = 5
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe on the paper's port, saying which images it trained on."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    run = {
        "base": os.path.relpath(TINY, folder),
        "max_steps": STEPS,
        "metrics_port": METRICS_PORT,
        "log_samples": True,
        "node_timeout_seconds": NODE_TIMEOUT_SECONDS,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return folder


def train_options(recipe: Path, prepared: Path, run: Path) -> list[str]:
    options = ["--config", recipe, "--data", prepared, "--output", run]
    return [str(ROOT / "ganbert" / "train.py"), *map(str, options)]


def environment() -> dict[str, str]:
    """What a node needs, as an image would set it; PYTHON... is what pdsh hands on."""
    path = f"{BIN}:{os.environ['PATH']}:/usr/sbin:/sbin"
    return {"PATH": path, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def each_node_itself(
    hosts: Cluster, num: int, recipe: Path, prepared: Path, run: Path, *more: object
) -> list[subprocess.Popen[str]]:
    """Start the command on each of the first nodes, as an Indexed Job of Kubernetes does."""
    return [
        hosts.start(
            host, BIN / "deepspeed", "--hostfile", hosts.hostfile(), "--no_ssh",
            "--num_nodes", num, "--node_rank", host, "--master_addr", hosts.names[0],
            "--master_port", PORT, *train_options(recipe, prepared, run), *more,
            environment=environment(),
        )
        for host in range(num)
    ]  # fmt: skip


def over_pdsh(
    hosts: Cluster, num: int, recipe: Path, prepared: Path, run: Path, *more: object
) -> subprocess.Popen[str]:
    """Start the command on the first host, which reaches all of them by ssh."""
    variables = run.with_name("deepspeed_env")
    # pdsh drops the environment but for a few names; DeepSpeed hands on what stands in this file.
    handed_on = {"GANBERT_CONFIG": recipe, "GANBERT_DATA": prepared, "GANBERT_OUTPUT": run}
    if (compiled := os.environ.get("TORCH_EXTENSIONS_DIR")) is not None:
        handed_on["TORCH_EXTENSIONS_DIR"] = Path(compiled)  # or the ranks compile Adam anew
    variables.write_text("".join(f"{name}={value}\n" for name, value in handed_on.items()))
    return hosts.start(
        0, BIN / "deepspeed", "--hostfile", hosts.hostfile(), "--num_nodes", num,
        ROOT / "ganbert" / "train.py", *more,
        environment={
            **environment(),
            "DS_ENV_FILE": str(variables),
            "PDSH_SSH_ARGS_APPEND": SSH_GIVES_UP,
        },
    )  # fmt: skip


def steps_done(run: Path) -> int:
    log = run / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def wait_for_step(run: Path, step: int, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while steps_done(run) < step:
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.1)


def scrape(hosts: Cluster, host: int) -> str:
    """What a node serves, asked for by another one at its address."""
    url = f"http://{hosts.addresses[host]}:{METRICS_PORT}/metrics"
    code = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=20).read().decode())"
    return hosts.run((host + 1) % NUM_HOSTS, sys.executable, "-c", code)


def scrape_all(hosts: Cluster) -> list[str]:
    """What each node serves, by number, with the training held: there are few steps to wait."""
    first, last = (
        next(psutil.Process(pid) for pid in hosts.processes(host) if is_rank(pid))
        for host in (0, NUM_HOSTS - 1)
    )
    try:
        first.suspend()  # the others wait for it, and serve
        served = [scrape(hosts, host) for host in range(1, NUM_HOSTS)]
        last.suspend()
        first.resume()
        return [scrape(hosts, 0), *served]
    finally:
        first.resume()
        last.resume()


def check_trained(run: Path, prepared: Path) -> None:
    """Eight ranks, disjoint shards, every image once an epoch, one checkpoint."""
    samples = read_samples(run)
    assert list(samples) == list(range(STEPS * 2 * NUM_HOSTS))  # accumulation 2
    order = [row for _, row in samples.values()]
    assert [rank for rank, _ in samples.values()] == [*range(NUM_HOSTS)] * STEPS * 2
    num_rows = len(load_index(prepared).select("train"))
    num_epochs = len(order) // num_rows
    assert num_epochs > 2
    for epoch in range(num_epochs):
        taken = Counter(order[epoch * num_rows : (epoch + 1) * num_rows])
        assert taken == Counter(range(num_rows)), f"epoch {epoch}"
    (checkpoint,) = list_checkpoints(run)
    assert json.loads((checkpoint / "state.json").read_text())["step"] == STEPS
    assert (run / "export" / "generator.safetensors").is_file()


def live(pids: list[int]) -> list[int]:
    def is_live(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [pid for pid in pids if is_live(pid)]


def is_rank(pid: int) -> bool:
    words = psutil.Process(pid).cmdline()
    return any(word.startswith("--local_rank=") for word in words)


def is_launcher(pid: int) -> bool:
    words = psutil.Process(pid).cmdline()
    return any(Path(word).name == "deepspeed" for word in words[:2])


@pytest.fixture
def processes_end(hosts: Cluster) -> Iterator[None]:
    """No test leaves a process on a host."""
    yield
    for host in range(NUM_HOSTS):
        for pid in hosts.processes(host):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.usefixtures("processes_end")
def test_over_ssh_and_pdsh(hosts: Cluster, recipe: Path, prepared: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = over_pdsh(hosts, NUM_HOSTS, recipe, prepared, run)
    wait_for_step(run, 1, [process])
    served = scrape_all(hosts)
    ((code, output),) = finish_all([process], DEADLINE_SECONDS)
    assert code == 0, output
    for host, text in enumerate(served):
        assert f'ganbert_rank_own_seconds{{rank="{host}"}}' in text, f"node {host}"
    check_trained(run, prepared)
    assert "8 ranks on cpu, from the start" in output
    assert [hosts.processes(host) for host in range(NUM_HOSTS)] == [[]] * NUM_HOSTS


@pytest.mark.usefixtures("processes_end")
def test_node_that_is_lost_over_pdsh_ends_the_launcher_too(
    hosts: Cluster, recipe: Path, prepared: Path, tmp_path: Path
) -> None:
    run, num, lost = tmp_path / "run", 4, 2
    process = over_pdsh(hosts, num, recipe, prepared, run, "--max-steps", 100000)
    wait_for_step(run, 2, [process])
    pids = [pid for host in range(num) if host != lost for pid in hosts.processes(host)]
    assert sum(map(is_rank, pids)) == num - 1
    hosts.cut_off(lost)
    cut = time.monotonic()
    # The launcher with pdsh, an ssh for each node, the launchers of the nodes, the ranks.
    while live(pids):
        assert time.monotonic() - cut < NODE_TIMEOUT_SECONDS + NO_HANG_SECONDS, live(pids)
        time.sleep(0.2)
    ((code, output),) = finish_all([process], NO_HANG_SECONDS)
    hosts.reconnect(lost)
    assert code != 0
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if "ganbert: rank" in line]
    assert len(lines) == num - 1, output
    for line in lines:
        assert f"error: rank {lost}: expected a process that trains" in line
        assert f"no answer from its node {hosts.names[lost]}: it is down or cut off" in line


@pytest.mark.usefixtures("processes_end")
def test_sigterm_over_pdsh_saves_on_all_nodes(
    hosts: Cluster, recipe: Path, prepared: Path, tmp_path: Path
) -> None:
    run, num = tmp_path / "run", 4
    process = over_pdsh(hosts, num, recipe, prepared, run, "--max-steps", 100000)
    wait_for_step(run, 2, [process])
    (launcher,) = (pid for pid in hosts.processes(0) if is_launcher(pid))
    os.kill(launcher, signal.SIGTERM)
    ((code, output),) = finish_all([process], DEADLINE_SECONDS)
    assert code == 1, output  # the launcher's own, whatever became of the ranks
    deadline = time.monotonic() + 60
    while left := [pid for host in range(num) for pid in hosts.processes(host)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    (checkpoint,) = list_checkpoints(run)
    assert read_state(checkpoint).step == steps_done(run)
    assert find_damage(checkpoint) is None


@pytest.mark.usefixtures("processes_end")
@pytest.mark.parametrize("lost", [2, 0], ids=["another node", "the node of rank 0"])
def test_node_that_is_lost_ends_the_job_and_is_named(
    hosts: Cluster, recipe: Path, prepared: Path, tmp_path: Path, lost: int
) -> None:
    run = tmp_path / "run"
    num = 4  # half of the nodes, for half of the time
    processes = each_node_itself(hosts, num, recipe, prepared, run, "--max-steps", 100000)
    wait_for_step(run, 2, processes)
    here = [host for host in range(num) if host != lost]
    pids = [pid for host in here for pid in hosts.processes(host)]
    ranks = [pid for pid in pids if is_rank(pid)]
    assert len(ranks) == len(here)
    hosts.cut_off(lost)
    cut = time.monotonic()
    # The ranks hold the GPUs. Their launchers look once a second, and go when they have seen it.
    for ending in (ranks, pids):
        while live(ending):
            assert time.monotonic() - cut < NODE_TIMEOUT_SECONDS + NO_HANG_SECONDS, live(ending)
            time.sleep(0.2)
    results = finish_all([processes[host] for host in here], NO_HANG_SECONDS)
    hosts.reconnect(lost)
    for code, output in results:
        assert code != 0
        assert "Traceback" not in output
        (line,) = [line for line in output.splitlines() if "ganbert: rank" in line]
        assert f"error: rank {lost}: expected a process that trains" in line
        assert f"no answer from its node {hosts.names[lost]}: it is down or cut off" in line


@pytest.mark.usefixtures("processes_end")
def test_started_by_each_node_itself(
    hosts: Cluster, recipe: Path, prepared: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = each_node_itself(hosts, NUM_HOSTS, recipe, prepared, run)
    results = finish_all(processes, DEADLINE_SECONDS)
    assert [code for code, _ in results] == [0] * NUM_HOSTS, results[0][1]
    check_trained(run, prepared)

"""Two ranks under the real launcher: train, be interrupted, resume, end where all would have."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from ganbert.checkpoint_files import find_damage, list_checkpoints, read_state
from ganbert.data.index import load_index
from ganbert.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR
from tests.saved_engines import assert_same, engines_of

from .conftest import RECIPE, Launch

MAX_STEPS = 40
DEADLINE_SECONDS = 240


def read_log(run: Path) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").exists() else []
    return [json.loads(line) for line in lines]


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not any(line["step"] >= step for line in read_log(run)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        for argument in child.cmdline():
            if argument.startswith("--local_rank="):
                found[int(argument.partition("=")[2])] = child
    return found


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, output


def weights_of(run: Path) -> dict[str, Any]:
    return load_file(run / "export" / "generator.safetensors")


def scrape(output_so_far: str, **headers: str) -> str:
    port = output_so_far.rpartition("metrics on port ")[2].split()[0]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics", headers=headers)
        return connection.getresponse().read().decode()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_interrupted_and_resumed_run_ends_with_the_weights_of_an_undisturbed_one(
    launch: Launch, prepared: Path, tmp_path: Path
) -> None:
    options = ("--config", RECIPE, "--data", prepared, "--output")
    code, output = finish(launch(*options, tmp_path / "whole"))
    assert code == 0, output
    whole = read_log(tmp_path / "whole")
    assert [line["step"] for line in whole] == list(range(1, MAX_STEPS + 1))
    assert whole[-1]["samples_seen"] == MAX_STEPS * 2 * 2  # accumulation 2, two ranks

    process = launch(*options, tmp_path / "cut")
    wait_for_step(tmp_path / "cut", 1, process)
    ranks = ranks_of(process)  # looked for before: what is left of 40 steps may be soon over
    wait_for_step(tmp_path / "cut", 3, process)
    # One rank alone hears it, and not the first: the ranks must agree to leave together.
    ranks[1].send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == EXIT_INTERRUPTED, output
    (checkpoint,) = list_checkpoints(tmp_path / "cut")
    assert 3 <= json.loads((checkpoint / "state.json").read_text())["step"] < MAX_STEPS
    assert not (tmp_path / "cut" / "export").exists()

    code, output = finish(launch(*options, tmp_path / "cut"))
    assert code == 0, output
    expected, actual = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert expected.keys() == actual.keys()
    assert all(bool((expected[name] == actual[name]).all()) for name in expected)
    # Not only what comes out: all that would be trained on with.
    last, of_cut = (list_checkpoints(tmp_path / name)[-1] for name in ("whole", "cut"))
    assert_same(engines_of(last), engines_of(of_cut))
    assert read_state(last) == read_state(of_cut)
    assert read_state(last).validation_l1 == whole[-1]["validation_l1"] > 0
    resumed = {line["step"]: line["loss_mlm_discriminator"] for line in read_log(tmp_path / "cut")}
    assert resumed == {line["step"]: line["loss_mlm_discriminator"] for line in whole}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_metrics_are_served_while_training_and_report_this_run(
    launch: Launch, prepared: Path, tmp_path: Path
) -> None:
    options = ("--config", RECIPE, "--data", prepared, "--output", tmp_path / "run")
    process = launch(*options, "--max-steps", 100000)
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if "metrics on port" in line:
            break
    wait_for_step(tmp_path / "run", 2, process)
    text = scrape(output)
    for rank in ranks_of(process).values():
        rank.send_signal(signal.SIGINT)  # Ctrl-C reaches every rank
    code, rest = finish(process)
    assert code == EXIT_INTERRUPTED, output + rest
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples["ganbert_step"]) >= 2
    assert float(samples["ganbert_volumes_total"]) == 4 * float(samples["ganbert_steps_total"])
    logged = read_log(tmp_path / "run")[int(float(samples["ganbert_step"])) - 1]
    l1 = samples['ganbert_loss{network="generator",term="l1"}']
    assert float(l1) == pytest.approx(logged["loss_l1"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_to_the_bare_launcher_saves_and_leaves_no_rank_behind(
    launch: Launch, prepared: Path, tmp_path: Path
) -> None:
    """It dies at once and tells nobody: the ranks see it."""
    run = tmp_path / "run"
    options = ("--config", RECIPE, "--data", prepared, "--output", run)
    process = launch(*options, "--max-steps", 100000)
    wait_for_step(run, 2, process)
    ranks = ranks_of(process)
    process.terminate()
    code, output = finish(process)
    assert code == -signal.SIGTERM
    assert "interrupted at step" in output
    assert not psutil.wait_procs(ranks.values(), timeout=60)[1]
    (checkpoint,) = list_checkpoints(run)
    assert find_damage(checkpoint) is None
    assert json.loads((checkpoint / "state.json").read_text())["step"] == read_log(run)[-1]["step"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_file_that_breaks_while_training_is_named_on_each_rank_and_ends_the_job(
    launch: Launch, prepared: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(prepared, tmp_path / "prepared"))
    options = ("--config", RECIPE, "--data", data, "--output", tmp_path / "run")
    process = launch(*options, "--max-steps", 100000)
    wait_for_step(tmp_path / "run", 2, process)
    broken = data / load_index(data).select("train")[0].mri.path
    os.truncate(broken, 400)
    started = time.monotonic()
    code, output = finish(process)
    assert time.monotonic() - started < 150  # of 180, after which a node is given up
    assert code == EXIT_USER_ERROR, output
    size = (prepared / broken.relative_to(data)).stat().st_size
    cause = f"{broken}: expected {size} bytes, found 400 bytes; run `ganbert prepare` again"
    for rank, other in ((0, 1), (1, 0)):
        (line,) = [line for line in output.splitlines() if f"ganbert: rank {rank}: " in line]
        # Both may meet the file before they hear of each other.
        assert line in (
            f"ganbert: rank {rank}: error: {cause}",
            f"ganbert: rank {rank}: error: rank {other}: {cause}",
        )
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_disk_that_fills_up_while_training_costs_only_the_checkpoint_being_written(
    launch: Launch, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(RECIPE, tmp_path / "recipe")
    file = tmp_path / "recipe" / "run.yaml"
    file.write_text(file.read_text().replace("checkpoint_every: 100", "checkpoint_every: 2"))
    run = tmp_path / "run"
    options = ("--config", tmp_path / "recipe", "--data", prepared, "--output", run)
    process = launch(*options, "--max-steps", 1000)
    wait_for_step(run, 4, process)
    # No file of rank 0, which writes them, can grow beyond this: to it, the disk is full.
    ranks_of(process)[0].rlimit(psutil.RLIMIT_FSIZE, (2**20, 2**20))
    code, output = finish(process)
    assert code == EXIT_USER_ERROR, output
    lines = [line for line in output.splitlines() if line.startswith("ganbert: rank")]
    assert len(lines) == 2, output
    assert all(".partial: expected room and permission for a checkpoint" in line for line in lines)
    assert "Traceback" not in output
    checkpoints = list_checkpoints(run)
    assert checkpoints
    assert [find_damage(folder) for folder in checkpoints] == [None] * len(checkpoints)
    assert not list((run / "checkpoints").glob("*.partial"))


@pytest.mark.timeout(300)
def test_a_wrong_key_is_one_line_and_exit_code_2(
    launch: Launch, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(RECIPE, tmp_path / "recipe")
    with (tmp_path / "recipe" / "run.yaml").open("a") as stream:
        stream.write("max_step: 3\n")
    options = ("--config", tmp_path / "recipe", "--data", prepared, "--output", tmp_path / "run")
    code, output = finish(launch(*options))
    assert code == EXIT_USER_ERROR, output
    (line,) = [line for line in output.splitlines() if "error:" in line]
    assert "'max_step'" in line
    assert "did you mean 'max_steps'?" in line
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_signal_ends_the_wait_for_prometheus_and_the_run_has_ended_well(
    launch: Launch, prepared: Path, tmp_path: Path
) -> None:
    options = ("--config", RECIPE, "--data", prepared, "--output", tmp_path / "run")
    process = launch(*options)
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if "metrics on port" in line:
            scrape(output, **{"X-Prometheus-Scrape-Timeout-Seconds": "10"})
        if "waiting until Prometheus" in line:
            break
    assert "exported" in output
    started = time.monotonic()
    for rank in ranks_of(process).values():
        rank.send_signal(signal.SIGTERM)
    code, rest = finish(process)
    assert code == 0, output + rest
    assert time.monotonic() - started < 55, rest  # of 65
    assert "Traceback" not in rest

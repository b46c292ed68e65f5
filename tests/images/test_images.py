"""The two images: what is in them, and that train and infer work as their user, read-only."""

import json
from pathlib import Path

import pytest

from .containers import TARGETS, USER, Engine, own_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # the first test builds the images


@pytest.mark.parametrize("target", TARGETS)
def test_image_says_what_it_is_and_runs_as_nobody_special(engine: Engine, target: str) -> None:
    config = engine.inspect(target)
    assert config["User"] == f"{USER}:{USER}"
    assert config["WorkingDir"] == "/opt/ganbert"
    assert config["StopSignal"] in ("SIGTERM", "15")
    labels = {
        str(name).removeprefix("org.opencontainers.image."): value
        for name, value in config["Labels"].items()
    }
    assert labels["version"] == "0.1.0"
    assert labels["revision"] == "0123abc"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["base.name"] == "localhost/base:test"
    done = engine.run(target, "sh", "-c", "id -u; touch /opt/ganbert/x")
    assert done.stdout.strip() == str(USER)
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_no_file_can_be_changed_by_the_user_or_gives_more_rights(
    engine: Engine, target: str
) -> None:
    script = "find /opt ! -type l -writable; find /opt /usr/local -perm -4000"
    done = engine.run(target, "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_inference_has_no_build_tools(engine: Engine) -> None:
    tools = "gcc g++ cc c++ clang make cmake ninja nvcc ld as pip pip3 deepspeed git curl"
    script = f"for tool in {tools}; do command -v $tool; done; ls -d /usr/include/python*"
    assert engine.run("infer", "sh", "-c", script).stdout == ""
    modules = "pip", "setuptools", "wheel", "ninja", "deepspeed"
    found = engine.run("infer", "ls", "/opt/venv/lib/python3.11/site-packages").stdout.split()
    assert "torch" in found
    assert not set(modules) & set(found)


def test_tini_reaps_what_lost_its_parent(engine: Engine) -> None:
    script = "(sleep 0.3 &) ; sleep 1; grep -l '^State:.Z' /proc/[0-9]*/status; true"
    assert engine.run("train", "bash", "-c", script).stdout == ""


def test_training_and_inference_end_well(
    engine: Engine, places: dict[str, Path], training: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    words = ("deepspeed", "--num_gpus=2", "ganbert/train.py", "--max-steps=4")
    environment = {**training["environment"], "GANBERT_OUTPUT": "/runs/whole"}
    done = engine.run("train", *words, mounts=training["mounts"], environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    run = places["/runs"] / "whole"
    last = (run / "log.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == 4

    # docker run -v data:/data:ro -v out:/out -v run:/model:ro IMAGE /data /out participant
    out = own_folder(tmp_path / "out")
    mounts = {"/data:ro": places["/data"] / "bids", "/model:ro": run, "/out": out}
    words = ("/data", "/out", "participant", "--participant-label", "001")
    done = engine.run("infer", *words, mounts=mounts)
    assert done.returncode == 0, done.stdout + done.stderr
    images = list(out.glob("sub-001/**/*_desc-synth_pet.nii.gz"))
    assert images, done.stdout
    assert all(image.stat().st_uid == USER for image in images)
    assert (out / "dataset_description.json").is_file()


def test_a_mistake_is_one_line_and_exit_code_2(engine: Engine) -> None:
    for target, words, said in (
        ("infer", ("deepspeed", "ganbert/train.py"), "use the image whose tag ends in -train"),
        ("infer", ("/data", "/out", "participant"), ": expected "),
    ):
        done = engine.run(target, *words)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("ganbert: error: ")
        assert said in line

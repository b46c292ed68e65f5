"""What the words given to a container start, and the files that the images are made from."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from ganbert import __version__
from ganbert.container import command_of, is_launcher
from ganbert.errors import ConfigError
from ganbert.umask import umask_of

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH holds deepspeed and bash."""
    for name in ("deepspeed", "bash"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": str(tmp_path)}


@pytest.mark.parametrize("words", [[], ["deepspeed", "ganbert/train.py"]])
def test_the_launcher_is_recognised(words: list[str], programs: dict[str, str]) -> None:
    command = command_of(words, programs)
    assert command == [f"{programs['PATH']}/deepspeed", "ganbert/train.py"]
    assert is_launcher(command)


def test_another_program_is_itself(programs: dict[str, str]) -> None:
    command = command_of(["bash", "-c", "true"], programs)
    assert command == [f"{programs['PATH']}/bash", "-c", "true"]
    assert not is_launcher(command)


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["/data", "/out", "participant"], ["--model=/model"]),
        (["/data", "/out", "participant", "--model", "/other"], []),
        (["/data", "/out", "participant", "--model=/other"], []),
        (["/data", "/out", "group"], []),
        (["--help"], []),
        (["--version"], []),
    ],
)
def test_what_is_no_program_goes_to_infer(
    words: list[str], added: list[str], programs: dict[str, str]
) -> None:
    command = command_of(words, {**programs, "GANBERT_MODEL": "/model"})
    ganbert = str(Path(sys.executable).with_name("ganbert"))
    assert command == [ganbert, "infer", *words, *added]


def test_training_in_the_image_for_inference_is_refused(tmp_path: Path) -> None:
    for words in ([], ["deepspeed", "--num_gpus=8"]):
        with pytest.raises(ConfigError, match="-train"):
            command_of(words, {"PATH": str(tmp_path)})


@pytest.fixture
def shared() -> Iterator[Path]:
    """A volume of group 10001, which that group can reach; pytest's own folders are closed."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        if os.geteuid() == 0:
            os.chown(folder, 0, 10001)
            Path(folder).chmod(0o2775)
        yield Path(folder)


def started(folder: Path, *words: str, as_user: Sequence[str] = (), **environment: str) -> int:
    """Run a command in a folder as the image would; return its exit code."""
    return subprocess.run(
        [*as_user, sys.executable, "-m", "ganbert.container", *words],
        cwd=folder, check=False, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    ).returncode  # fmt: skip


@pytest.mark.parametrize("program", ["sh", "deepspeed"])
def test_the_umask_reaches_whatever_is_started(program: str, tmp_path: Path) -> None:
    launcher = tmp_path / "bin" / "deepspeed"
    launcher.parent.mkdir()
    launcher.write_text('#!/bin/sh\nexec sh "$@"\n')
    launcher.chmod(0o755)
    path = {"PATH": f"{launcher.parent}:{os.environ['PATH']}"}
    started(tmp_path, program, "-c", "umask 022; mkdir run", **path)
    started(tmp_path, program, "-c", "mkdir of_group", **path, GANBERT_UMASK="002")
    started(tmp_path, program, "-c", "mkdir of_one", **path, GANBERT_UMASK="0077")
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == {"bin": modes["bin"], "run": 0o755, "of_group": 0o775, "of_one": 0o700}


@pytest.mark.parametrize("text", ["", "2", "0888", "-02", "u=rwx"])
def test_a_umask_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="GANBERT_UMASK"):
        umask_of({"GANBERT_UMASK": text})
    assert umask_of({}) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_a_reader_of_the_group_writes_into_a_run_of_root(shared: Path) -> None:
    """The users of overlays/dgx1-8node and overlays/read: root without capabilities, and 10001."""
    dropped = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    root = ["setpriv", "--regid=10001", *dropped]
    reader = ["setpriv", "--reuid=10001", "--regid=10001", *dropped, "mkdir"]
    codes = {}
    for name, umask in (("closed", "022"), ("open", "002")):
        assert started(shared, "mkdir", name, as_user=root, GANBERT_UMASK=umask) == 0
        folder = shared / name / "evaluation"
        done = subprocess.run([*reader, folder], check=False, capture_output=True)
        codes[name] = done.returncode
    assert codes == {"closed": 1, "open": 0}


def test_a_gpu_without_code_ends_the_container_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, programs: dict[str, str]
) -> None:
    import ganbert.container as container

    monkeypatch.setattr(container, "_DEVICES", ("null",))
    # Stands for `python -m ganbert.gpu_arch`, which needs such a GPU.
    refused = subprocess.CompletedProcess([], 2)
    monkeypatch.setattr(container.subprocess, "run", lambda *_, **__: refused)
    monkeypatch.setattr(container, "supervise", lambda *_: pytest.fail("it was started"))
    monkeypatch.setenv("PATH", programs["PATH"])
    assert container.run(["deepspeed"]) == 2


def test_everything_that_is_copied_passes_the_ignore_file() -> None:
    allowed = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    sources = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        sources |= set(line.split()[:-1])
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert any(source == path or source.startswith(f"{path}/") for path in allowed), source
    for path in allowed:
        assert any(source == path or source.startswith(f"{path}/") for source in sources), path


def test_every_version_is_a_pinned_one() -> None:
    assert re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE) == [__version__] * 2
    bases = re.findall(r"^ARG \w*BASE_IMAGE=(.*)$", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2
    assert all(re.search(r":\S*\d", base) for base in bases)
    assert re.search(r"^ARG APEX_COMMIT=[0-9a-f]{40}$", DOCKERFILE, re.MULTILINE)
    assert not re.search(r"pip install[^;]*\bapex\b(?!/archive)", DOCKERFILE)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint (make venv installs it)")
def test_hadolint_finds_nothing() -> None:
    command = [
        "hadolint",
        "--no-color",
        "-c",
        ROOT / ".hadolint.yaml",
        ROOT / "docker" / "Dockerfile",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_fits_the_image_and_the_recipe() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = compose["services"]
    for service in services.values():
        assert ":" in service["image"]
        assert not service["image"].endswith(":latest")
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
            elif not source.startswith("$"):
                assert source in compose["volumes"]
    train = services["train"]
    assert train["image"] == f"ganbert:{__version__}-train"
    assert train["user"] == "10001:10001"
    assert train["read_only"]
    scraped = yaml.safe_load((ROOT / "docker" / "prometheus.yaml").read_text())
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    paper = yaml.safe_load((ROOT / "ds_configs" / "paper" / "run.yaml").read_text())
    assert target == f"train:{paper['metrics_port']}"
    # What its rules and dashboards tell runs apart by, and the rules themselves.
    assert scraped["scrape_configs"][0]["static_configs"][0]["labels"].keys() == {
        "namespace",
        "run",
    }
    places = [volume.split(":")[1] for volume in services["prometheus"]["volumes"]]
    assert set(scraped["rule_files"]) <= set(places)

"""docs/container.md: its commands parse, and name what Dockerfile, compose.yaml and code have."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from ganbert import __version__
from ganbert.cli import app
from ganbert.container import command_of
from ganbert.train_options import parse_options

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "container.md").read_text()
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
OURS = re.compile(r"\bganbert:(\S+?)-(?:train|infer)\b")


def commands() -> Iterator[list[str]]:
    """Words of each line of the page's blocks, variables before the program taken off."""
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                del words[0]
            if words:
                yield words


def of_docker(*verb: str) -> list[list[str]]:
    """Words after such a verb of docker."""
    size = 1 + len(verb)
    return [words[size:] for words in commands() if words[:size] == ["docker", *verb]]


def parse(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Parse what follows the image, as the container would."""
    (folder / "deepspeed").write_text("#!/bin/sh\n")
    (folder / "ganbert").write_text("#!/bin/sh\n")
    for program in ("deepspeed", "ganbert"):
        (folder / program).chmod(0o755)
    meant = command_of(words, {"PATH": str(folder), "GANBERT_MODEL": "/model"})
    if Path(meant[0]).name == "deepspeed":
        options = parse_options(meant[meant.index("ganbert/train.py") + 1 :], environment)
        assert (ROOT / options.config / "run.yaml").is_file()
        return
    _, verb, *arguments = meant
    typer.main.get_command(app).commands[verb].make_context(verb, arguments)


def filled_in(value: str) -> str:
    """Take the defaults of `${NAME:-default}`."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def test_the_page_names_this_version_alone() -> None:
    assert set(OURS.findall(PAGE)) <= {__version__, "VERSION"}


def test_builds_name_what_the_dockerfile_has() -> None:
    builds = of_docker("build")
    assert len(builds) == 2
    for words in builds:
        assert (ROOT / words[words.index("-f") + 1]).is_file()
        assert f" AS {words[words.index('--target') + 1]}\n" in DOCKERFILE
    given = re.findall(r"--build-arg (\w+)", PAGE) + re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.M
    )
    for name in re.findall(r"\w+", " ".join(given)):
        assert re.search(rf"^ARG {name}\b", DOCKERFILE, re.MULTILINE), name


def test_what_the_images_are_given_parses(tmp_path: Path) -> None:
    runs = of_docker("run")
    assert len(runs) >= 3
    for words in runs:
        (place,) = [i for i, word in enumerate(words) if OURS.fullmatch(word)]
        given = [words[i + 1] for i, word in enumerate(words[:place]) if word == "-e"]
        parse(words[place + 1 :], tmp_path, dict(one.split("=", 1) for one in given))


def test_what_compose_gives_to_the_image_parses(tmp_path: Path) -> None:
    given = COMPOSE["services"]["train"]["environment"]
    parse([], tmp_path, {name: filled_in(value) for name, value in given.items()})
    runs = of_docker("compose", "run")
    assert runs
    for options, service, *words in runs:
        assert (options, service) == ("--rm", "train")
        parse(words, tmp_path, {})


def test_recipes_of_this_folder_lie_where_the_image_looks() -> None:
    assert "./ds_configs:/opt/ganbert/ds_configs:ro" in COMPOSE["services"]["train"]["volumes"]
    assert re.search(r"^WORKDIR /opt/ganbert\nCOPY constraints", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^COPY ds_configs ds_configs$", DOCKERFILE, re.MULTILINE)


def test_volumes_and_folders_that_the_page_names_are_those_of_compose() -> None:
    (volume,) = set(re.findall(r"`(ganbert_\w+)`", PAGE))
    project, _, name = volume.partition("_")
    assert (project, name in COMPOSE["volumes"]) == (COMPOSE["name"], True)
    (run,) = re.findall(r"GANBERT_RUN=(\w+)", PAGE)
    copied = [words[0] for words in of_docker("compose", "cp")]
    assert copied
    assert all(source.startswith(f"train:/runs/{run}/") for source in copied)


def docker_compose() -> list[str] | None:
    """Return the command of Docker Compose, if it is installed."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is not None:
            done = subprocess.run([*command, "version"], capture_output=True, check=False)
            if done.returncode == 0:
                return command
    return None


@pytest.mark.skipif(docker_compose() is None, reason="no Docker Compose")
def test_docker_compose_understands_the_file() -> None:
    """It asks no daemon."""
    chosen = {"GANBERT_CONFIG": "ds_configs/paper", "GANBERT_RUN": "paper"}
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **chosen}
    command = [*(docker_compose() or []), "-f", str(ROOT / "compose.yaml"), "config"]

    def ask(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment | more
        )

    without = ask()
    assert without.returncode != 0
    assert "the output folder of ganbert prepare" in without.stderr
    done = ask(GANBERT_PREPARED="/data/prepared")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    train = yaml.safe_load(done.stdout)["services"]["train"]
    assert train["environment"]["GANBERT_OUTPUT"] == "/runs/paper"
    assert train["pull_policy"] == "never"

"""The commands of the runbook, docs/operations.md: kubectl knows them, and pods can run them."""

import re
import shlex
import subprocess

import pytest

from .manifests import ROOT, kubectl
from .test_policy import training

PAGE = (ROOT / "docs" / "operations.md").read_text()
ALERTS = PAGE[PAGE.index("\n## Alerts\n") : PAGE.index("\n## NCCL on")]
COMMANDS = [
    shlex.split(line.partition(" | ")[0])[1:]
    for line in re.findall(r"(?:`|^    )(kubectl [^`\n]+)", ALERTS, re.MULTILINE)
]
OF_NODES = ("cordon",)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:50])
def test_kubectl_knows_the_command_and_is_told_the_namespace(words: list[str]) -> None:
    assert words[:2] == ["-n", "NAMESPACE"] or words[0] in OF_NODES
    asked = words[: words.index("--")] if "--" in words else words
    done = subprocess.run(
        [str(kubectl()), *asked, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_there_are_commands_for_the_ones_that_say_look() -> None:
    assert {"get", "describe", "logs", "exec", "delete"} <= {word for c in COMMANDS for word in c}


def test_a_container_that_they_name_is_in_the_pod() -> None:
    names = {words[words.index("-c") + 1] for words in COMMANDS if "-c" in words[:6]}
    pod = training("overlays/dgx1-8node").spec
    assert names == {"train", "stage"}
    assert names <= {one["name"] for one in (*pod["initContainers"], *pod["containers"])}


def test_the_image_has_what_asks_a_rank_for_its_stacks() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    (inside,) = [words[words.index("--") + 1 :] for words in COMMANDS if "pkill" in words]
    assert inside[:2] == ["pkill", "-USR1"]
    assert re.search(r"apt-get install[^;]*\bprocps\b", dockerfile)

"""The commands of kubernetes/README.md name what is there, and none of them deletes data."""

import re
import shlex
import subprocess

import pytest
import typer

from ganbert.cli import app

from .manifests import KUBERNETES, OVERLAYS, ROOT, TARGETS, kubectl, render

PAGE = (KUBERNETES / "README.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
OF_KUBECTL = [words[1:] for words in COMMANDS if words[0] == "kubectl"]


def objects() -> set[str]:
    """kind/name of everything that any folder applies."""
    return {
        f"{document['kind'].lower()}/{document['metadata']['name']}"
        for target in TARGETS
        for document in render(target)
    }


def test_submit_watch_stop_go_on_scale_and_read_are_commands() -> None:
    verbs = {word for words in OF_KUBECTL for word in words}
    assert {"apply", "logs", "patch", "delete", "wait", "cp", "exec"} <= verbs
    assert {words[0] for words in COMMANDS} <= {"kubectl", "sed", "openssl"}


def test_every_overlay_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(?:overlays/)?([\w-]+)` \|", PAGE, re.MULTILINE)) == {
        "base", *OVERLAYS,
    }  # fmt: skip


def test_what_is_applied_is_there() -> None:
    applied = [words[words.index("-k") + 1] for words in OF_KUBECTL if "-k" in words]
    assert applied
    for folder in applied:
        assert folder.removeprefix("kubernetes/") in TARGETS


def test_no_command_deletes_claims() -> None:
    for words in OF_KUBECTL:
        if "delete" in words:
            assert words[words.index("delete") + 1] in ("job", "pod"), words


def test_objects_that_are_named_exist() -> None:
    named = [
        f"{words[i]}/{words[i + 1]}"
        for words in OF_KUBECTL
        for i in range(len(words) - 1)
        if words[i] in ("job", "pod") and words[i + 1].startswith("ganbert")
    ]
    named += [word for words in OF_KUBECTL for word in words if re.match(r"(job|service)/", word)]
    assert named
    assert set(named) <= objects()


def test_verbs_inside_a_pod_parse() -> None:
    inside = [words[words.index("--") + 1 :] for words in OF_KUBECTL if "--" in words]
    assert inside
    for program, verb, *arguments in inside:
        assert program == "ganbert"
        typer.main.get_command(app).commands[verb].make_context(verb, arguments)


@pytest.mark.parametrize("words", OF_KUBECTL, ids=lambda words: " ".join(words)[:40])
def test_kubectl_knows_the_options(words: list[str]) -> None:
    """Without a cluster it fails at the server, and not at the command line."""
    if "--" in words:
        words = words[: words.index("--")]
    if words[0] == "apply" or "logs" in words or "port-forward" in words or "exec" in words:
        words = [*words, "--help"]
    done = subprocess.run(
        [str(kubectl()), *words, "--server=http://127.0.0.1:1", "--request-timeout=1s"],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
    )  # fmt: skip
    for mistake in ("unknown flag", "unknown command", "unknown shorthand", "required", "invalid"):
        assert mistake not in done.stderr, done.stderr


def test_the_scaling_command_changes_the_number() -> None:
    (words,) = [words for words in COMMANDS if words[0] == "sed"]
    _, before, after, _ = words[2].split("/")
    assert (ROOT / words[3]).read_text().count(before) == 1
    assert after.strip().startswith("nodes: ")


def test_the_overlay_in_the_page_renders(tmp_path_factory: pytest.TempPathFactory) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    folder = tmp_path_factory.mktemp("own") / "kubernetes"
    subprocess.run(["cp", "-r", KUBERNETES, folder], check=True)
    mine = folder / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(text)
    done = subprocess.run(
        [str(kubectl()), "kustomize", mine], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "image: registry.example/ganbert:0.1.0-train" in done.stdout
    assert "value: ds_configs/h100" in done.stdout
    assert done.stdout.count("storageClassName: your-shared-class") == 2

"""The commands of kubernetes/README.md name what is there, and none of them deletes data."""

import re
import shlex
import subprocess

import pytest
import typer

from ganbert.cli import app

from .manifests import EXAMPLES, KUBERNETES, OVERLAYS, ROOT, TARGETS, kubectl, render

PAGE = (KUBERNETES / "README.md").read_text()
COMMANDS = [
    shlex.split(command)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    for command in line.split(" | ")
]
OF_KUBECTL = [words[1:] for words in COMMANDS if words[0] == "kubectl"]
APPLIED = [words[words.index("-k") + 1] for words in OF_KUBECTL if "-k" in words]
# What the page has a person copy to `mine`.
MINE = "kubernetes/mine/"


def rendered_from(folder: str) -> str:
    """The folder of this repository that a folder of the page is, or is a copy of."""
    if folder.startswith(MINE):
        return f"example/{folder.removeprefix(MINE)}"
    return folder.removeprefix("kubernetes/")


def objects() -> set[str]:
    """kind/name of everything that any folder applies."""
    return {
        f"{document['kind'].lower()}/{document['metadata']['name']}"
        for target in TARGETS
        for document in render(target)
    }


def test_submit_watch_stop_go_on_scale_and_read_are_commands() -> None:
    verbs = {word for words in OF_KUBECTL for word in words}
    assert {"apply", "logs", "patch", "delete", "wait", "cp", "exec", "drain"} <= verbs
    programs = {"kubectl", "sed", "openssl", "cp", "tar", "kubernetes/wait.sh"}
    assert {words[0] for words in COMMANDS} == programs


def test_every_overlay_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(?:overlays/)?([\w-]+)` \|", PAGE, re.MULTILINE)) == {
        "base", *OVERLAYS,
    }  # fmt: skip


def test_what_is_applied_is_there() -> None:
    assert {rendered_from(folder) for folder in APPLIED} <= {*TARGETS, *EXAMPLES}


def test_the_page_leads_from_an_empty_cluster_to_a_service() -> None:
    """Each step stands behind those that it needs."""
    steps = [folder.removeprefix(MINE) for folder in APPLIED]
    first = [steps.index(name) for name in
             ("smoke", "site", "load", "prepare", "train", "read", "infer", "serve")]  # fmt: skip
    assert first == sorted(first)
    assert {f"example/{name}" for name in steps} == set(EXAMPLES)


def test_whoever_applies_a_job_waits_for_its_end_either_way() -> None:
    """The trap: `kubectl wait --for=condition=complete` on a Job that failed."""
    waited = {tuple(words[1:3]) for words in COMMANDS if words[0] == "kubernetes/wait.sh"}
    jobs = ("ganbert-prepare", "ganbert-train", "ganbert-infer")
    assert waited == {("ganbert-smoke", "ganbert-train"), *(("ganbert", name) for name in jobs)}
    assert "condition=complete" not in PAGE


def test_no_command_deletes_claims() -> None:
    for words in OF_KUBECTL:
        if "delete" in words:
            what = words[words.index("delete") + 1 :]
            assert what[0] in ("job", "pod") or what == ["namespace", "ganbert-smoke"], words


def test_a_job_is_gone_before_its_like_is_applied() -> None:
    """The trap: kubectl is back at once, and the new pods find the run held by those that save."""
    deleted = [words for words in OF_KUBECTL if "delete" in words and "job" in words]
    assert [words[-2:] for words in deleted] == [
        ["ganbert-prepare", "--cascade=foreground"],
        *[["ganbert-train", "--cascade=foreground"]] * 2,
    ]


def test_what_removes_a_training_leaves_the_data() -> None:
    (command,) = re.findall(r"`kubectl\s(delete -k\s[^`]+)`", PAGE)
    kinds = {one["kind"] for one in render(rendered_from(command.split()[2]))}
    assert "Service" in kinds
    assert not kinds & {"Namespace", "PersistentVolumeClaim"}


def test_objects_that_are_named_exist() -> None:
    named = [
        f"{words[i]}/{words[i + 1]}"
        for words in OF_KUBECTL
        for i in range(len(words) - 1)
        if words[i] in ("job", "pod") and words[i + 1].startswith("ganbert")
    ]
    kinds = r"(job|service|pod|deployment)/"
    named += [word for words in OF_KUBECTL for word in words if re.match(kinds, word)]
    named += [f"job/{words[2]}" for words in COMMANDS if words[0] == "kubernetes/wait.sh"]
    assert named
    assert set(named) <= objects()


def test_verbs_inside_a_pod_parse() -> None:
    inside = [words[words.index("--") + 1 :] for words in OF_KUBECTL if "--" in words]
    assert inside
    for program, *words in inside:
        assert program in ("ganbert", "mkdir", "tar", "du")
        if program == "ganbert":
            verb, *arguments = words
            typer.main.get_command(app).commands[verb].make_context(verb, arguments)


@pytest.mark.parametrize("words", OF_KUBECTL, ids=lambda words: " ".join(words)[:40])
def test_kubectl_knows_the_options(words: list[str]) -> None:
    """Without a cluster it fails at the server, and not at the command line."""
    if "--" in words:
        words = words[: words.index("--")]
    if words[0] == "apply" or {"logs", "port-forward", "exec", "rollout", "drain"} & set(words):
        words = [*words, "--help"]
    done = subprocess.run(
        [str(kubectl()), *words, "--server=http://127.0.0.1:1", "--request-timeout=1s"],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
    )  # fmt: skip
    for mistake in ("unknown flag", "unknown command", "unknown shorthand", "required", "invalid"):
        assert mistake not in done.stderr, done.stderr

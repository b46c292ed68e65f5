"""docs/container.md: how a cluster gets the images, by the real kubectl."""

import re
import shlex
import subprocess

import pytest

from .manifests import EXAMPLES, ROOT, TARGETS, applied, find, kubectl, load_all, pods, render

PAGE = (ROOT / "docs" / "container.md").read_text()


@pytest.mark.parametrize("site", ["example/site", "example/smoke"])
def test_the_account_has_the_secret(site: str) -> None:
    assert find(render(site), "ServiceAccount")["imagePullSecrets"] == [{"name": "registry"}]


@pytest.mark.parametrize("target", TARGETS)
def test_every_pod_runs_under_that_account(target: str) -> None:
    account = find(render("example/site"), "ServiceAccount")["metadata"]["name"]
    documents = applied(target)
    assert find(documents, "ServiceAccount")["metadata"]["name"] == account
    for pod in pods(documents):
        assert pod.spec["serviceAccountName"] == account, pod.owner


def test_the_secret_is_what_kubectl_makes_of_the_command() -> None:
    (line,) = re.findall(r"^kubectl .* create secret .*$", PAGE, re.MULTILINE)
    done = subprocess.run(
        [str(kubectl()), *shlex.split(line)[1:], "--dry-run=client", "-o", "yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (secret,) = load_all(done.stdout)
    assert secret["type"] == "kubernetes.io/dockerconfigjson"
    assert (secret["metadata"]["name"], secret["metadata"]["namespace"]) == ("registry", "ganbert")


def test_the_namespace_that_it_wants_first_is_a_step() -> None:
    (folder,) = re.findall(r"^kubectl apply -k (\S+)$", PAGE, re.MULTILINE)
    step = folder.replace("kubernetes/mine", "example")
    assert step in EXAMPLES
    assert find(render(step), "Namespace")["metadata"]["name"] == "ganbert"

"""docs/container.md: how a cluster gets the images, by the real kubectl."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from .manifests import KUBERNETES, ROOT, TARGETS, find, kubectl, load_all, pods

PAGE = (ROOT / "docs" / "container.md").read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_the_secret_reaches_the_account_of_every_pod(target: str, tmp_path: Path) -> None:
    (patch,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    folder = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, folder)
    mine = folder / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(f"resources: [../../{target}]\n{patch}")
    done = subprocess.run(
        [str(kubectl()), "kustomize", mine], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    documents = load_all(done.stdout)
    account = find(documents, "ServiceAccount")
    assert account["imagePullSecrets"] == [{"name": "registry"}]
    assert pods(documents)
    for pod in pods(documents):
        assert pod.spec["serviceAccountName"] == account["metadata"]["name"], pod.owner


def test_the_secret_is_what_kubectl_makes_of_the_command(tmp_path: Path) -> None:
    (line,) = re.findall(r"^kubectl .* create secret .*$", PAGE, re.MULTILINE)
    done = subprocess.run(
        [str(kubectl()), *shlex.split(line)[1:], "--dry-run=client", "-o", "yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (secret,) = load_all(done.stdout)
    assert secret["type"] == "kubernetes.io/dockerconfigjson"
    assert (secret["metadata"]["name"], secret["metadata"]["namespace"]) == ("registry", "ganbert")


def test_the_namespace_that_it_wants_first_is_a_file() -> None:
    (file,) = re.findall(r"^kubectl apply -f (\S+)$", PAGE, re.MULTILINE)
    assert find(load_all((ROOT / file).read_text()), "Namespace")["metadata"]["name"] == "ganbert"

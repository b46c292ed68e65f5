"""The MPIJob's launcher and two of its workers on this machine, over real ssh and pdsh.

What the operator does is done by hand: names, keys, the hostfile. Two workers of a rank each on the
CPU stand for eight of eight GPUs; the commands, the files of ssh and the users are as rendered.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ganbert.config import GRIDS
from ganbert.data.phantom import make_cohort
from ganbert.prepare import prepare
from tests.cluster.hosts import missing

from .manifests import ROOT, Document, Pod, find, pods, render
from .sandbox import IMAGE_FOLDER, Pods, exit_codes, lacking, pods_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing() or lacking()), reason=str(missing() or lacking())),
]
WORKERS, STEPS = 2, 3


def made_small(documents: list[Document]) -> dict[str, Pod]:
    """Two workers on the CPU and a recipe of tests/; everything else stays."""
    by_component = {pod.labels["app.kubernetes.io/component"]: pod for pod in pods(documents)}
    worker, launcher = by_component["training"], by_component["launcher"]
    container = launcher.container("launcher")
    (nodes,) = [one for one in container["env"] if one["name"] == "GANBERT_NODES"]
    nodes["value"] = str(WORKERS)
    container["command"].append(f"--max-steps={STEPS}")
    files = find(documents, "ConfigMap", "ganbert-ssh")["data"]
    recipe = f"{IMAGE_FOLDER}/tests/data/recipe_tiny"
    files["deepspeed_env"] = files["deepspeed_env"].replace("ds_configs/paper_tamed", recipe)
    files["deepspeed_env"] += f"DS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\nPYTHONPATH={IMAGE_FOLDER}\n"
    name = find(documents, "MPIJob")["metadata"]["name"]
    templates = {f"{name}-worker-{index}": worker for index in range(WORKERS)}
    return templates | {f"{name}-launcher": launcher}


def what_the_operator_mounts(folder: Path, job: Document, names: list[str]) -> dict[str, Path]:
    """Keys in a Secret that belongs to root, and the hostfile in OpenMPI's form."""
    keys, mpi = folder / "keys", folder / "mpi"
    keys.mkdir()
    mpi.mkdir()
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-N", "", "-f", keys / "id_rsa"]
    subprocess.run(command, check=True)
    (keys / "id_rsa.pub").rename(keys / "authorized_keys")
    for file in keys.iterdir():
        file.chmod(0o644)
    subdomain = job["metadata"]["name"]
    lines = [f"{name}.{subdomain} slots=1\n" for name in names]
    (mpi / "hostfile").write_text("".join(lines))
    return {job["spec"]["sshAuthMountPath"]: keys, "/etc/mpi": mpi}


def test_the_launcher_trains_on_its_workers(tmp_path: Path) -> None:
    documents = render("overlays/mpijob")
    job = find(documents, "MPIJob")
    templates = made_small(documents)
    with pods_of(documents, templates, job["metadata"]["name"]) as made:
        made.given = what_the_operator_mounts(tmp_path, job, made.names[:WORKERS])
        cohort(made)
        workers = [made.start_container("train", index) for index in range(WORKERS)]
        try:
            launcher = made.start_container("launcher", WORKERS)
            ((code, output),) = exit_codes([launcher], 300)
            assert code == 0, output
            assert f"{WORKERS} ranks on cpu, from the start" in output
        finally:
            for worker in workers:
                worker.kill()
        run = made.volume("runs", 0) / "av45"
        assert {path for path in run.rglob("*") if not path.stat().st_mode & 0o020} == set()
        goes_on_as_root(run, made.volume("data", 0) / "prepared")
        log = (made.volume("runs", 0) / "av45" / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == [*range(1, STEPS + 2)]


def goes_on_as_root(run: Path, data: Path) -> None:
    """One more step as overlays/dgx1-8node has it: root without the right to pass over modes."""
    alone = [
        "setpriv", "--regid=10001", "--clear-groups", "--no-new-privs", "--bounding-set=-all",
        "--inh-caps=-all", sys.executable, "-m", "ganbert.container", "deepspeed", "--num_gpus=1",
        "ganbert/train.py", f"--max-steps={STEPS + 1}",
    ]  # fmt: skip
    own = {
        "DS_ACCELERATOR": "cpu", "GANBERT_CONFIG": "tests/data/recipe_tiny", "GANBERT_UMASK": "002",
        "GANBERT_DATA": str(data), "GANBERT_OUTPUT": str(run),
    }  # fmt: skip
    done = subprocess.run(
        alone, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert run.stat().st_uid == 10001


def cohort(made: Pods) -> None:
    """What overlays/prepare leaves in the claim."""
    data = made.volume("data", 0)
    make_cohort(data / "bids", num_subjects=16, tracer="AV45", seed=1, size="tiny", jobs=1)
    mri_grid, pet_grid = GRIDS["tiny"]
    prepare(data / "bids", data / "prepared", mri_grid=mri_grid, pet_grid=pet_grid, seed=0, jobs=1)

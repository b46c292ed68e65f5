"""A hundred uploads from eight clients at once: none lost, none mixed up, memory flat."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ganbert.data.nifti import read_volume
from ganbert.predict import load_predictor
from tests.serve.images import t1w
from tests.serve.running import RunningService

pytestmark = pytest.mark.slow  # starts the service itself

NUM_UPLOADS, NUM_CLIENTS, WARM_UP = 100, 8, 30
# A worker's heap breathes; a leak of one upload or result each would be larger.
ALLOWED_GROWTH = 12 << 20


def test_a_hundred_uploads_from_eight_clients(
    service: RunningService, tiny_export: Path, tmp_path: Path
) -> None:
    memory: list[int] = []
    before = service.files()
    lock, num_done = threading.Lock(), 0

    def run(seed: int) -> tuple[int, bytes, dict]:
        nonlocal num_done
        content = t1w(seed, packed=seed % 2 == 0)
        answer = service.upload(content)
        assert answer.status == 202, answer
        job = service.finish(answer.json["id"])
        assert job["state"] == "done", job
        pet = service.ask("GET", job["links"]["pet"])
        sidecar = service.ask("GET", job["links"]["sidecar"])
        assert (pet.status, sidecar.status) == (200, 200)
        assert sidecar.json["GanbertInputSHA256"] == hashlib.sha256(content).hexdigest()
        assert service.ask("DELETE", job["links"]["self"]).status == 204
        with lock:
            num_done += 1
            if num_done in (WARM_UP, NUM_UPLOADS):
                memory.append(service.memory())
        return seed, pet.body, sidecar.json

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        results = list(clients.map(run, range(NUM_UPLOADS)))
    assert [seed for seed, _, _ in results] == list(range(NUM_UPLOADS))
    predictor = load_predictor(tiny_export, "cpu")
    for seed, pet, sidecar in results:
        file = tmp_path / "t1w.nii"
        file.write_bytes(t1w(seed, packed=False))
        expected = predictor.predict(read_volume(file)).array
        (tmp_path / "pet.nii.gz").write_bytes(pet)
        found = read_volume(tmp_path / "pet.nii.gz").array
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=f"seed {seed}")
        assert sidecar["Units"] == "SUVR"
    assert len({pet for _, pet, _ in results}) == NUM_UPLOADS
    assert nib.load(tmp_path / "pet.nii.gz").shape[3] == 2
    assert service.files() == before
    assert memory[1] - memory[0] < ALLOWED_GROWTH, memory

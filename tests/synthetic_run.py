"""A run folder without training: ellipsoid brains, invented losses and metrics, for the report.

The anatomy is lopsided on purpose: a hot spot sits at the left, front and top, so that a flipped or
rotated picture is seen by a test.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ganbert.agreement import SHARES, agreement_lines
from ganbert.config import Grid
from ganbert.data.index import SCHEMA_VERSION, CachedImage, Index, Row, file_sha256, save_index
from ganbert.data.nifti import write_cache, write_volume
from ganbert.data.volume import Affine, FloatArray, Volume
from ganbert.metrics import summarise
from ganbert.tables import finite, write_tsv

MRI_GRID = Grid(shape=(32, 32, 32), spacing_mm=(8.0, 8.0, 8.0))
# Another spacing along each axis: a picture that forgets the spacing is seen.
PET_GRID = Grid(shape=(23, 15, 19), spacing_mm=(8.0, 10.0, 8.0))
FRAME_START_S, FRAME_DURATION_S = (3000.0, 3300.0), (300.0, 300.0)
HOT_SPOT_MM = (-32.0, 40.0, 30.0)
COLUMNS = "subject session tracer method mask reference data_range_low data_range_high " \
          "psnr ssim rmse mae intensity_distance top_recall".split()  # fmt: skip
LOSSES = ("loss_l1", "loss_nsp_generator", "loss_mlm_generator", "loss_nsp_discriminator",
          "loss_mlm_discriminator")  # fmt: skip


def describe(**changes: Any) -> dict[str, Any]:
    """Return a `run.json` with everything that its readers need."""
    networks = {"generator": {"channels": [4, 8]}, "discriminator": {"kind": "bert"}}
    return {
        "ganbert_version": "0.1.0", "recipe_name": "demo", "tracer": "FDG", "unit": "SUVR",
        "data": "prepared", "index_sha256": "0" * 64, "intensity_ratio": 0.1,
        "world_size": 2, "device": "CPU", "versions": {"torch": "2.13.0"},
        "recipe": {"run": {"max_steps": 60, "note": "<script>alert(1)</script>", **networks}},
    } | changes  # fmt: skip


def grid_affine(grid: Grid) -> Affine:
    """Centre a grid on the origin: voxel (d, h, w) to (x, y, z) mm."""
    affine = np.zeros((4, 4))
    for axis, world in enumerate((1, 2, 0)):
        affine[world, axis] = grid.spacing_mm[axis]
        affine[world, 3] = -grid.spacing_mm[axis] * (grid.shape[axis] - 1) / 2
    affine[3, 3] = 1.0
    return affine


def ellipsoid(grid: Grid, noise: float, seed: int) -> FloatArray:
    """A brain of value 1 with a hot spot of 2.5, (D, H, W)."""
    index = np.stack([*np.indices(grid.shape), np.ones(grid.shape)])
    x, y, z, _ = np.tensordot(grid_affine(grid), index, axes=1)
    brain = ((x / 62) ** 2 + (y / 78) ** 2 + (z / 58) ** 2 < 1).astype(np.float32)
    distance = sum((a - b) ** 2 for a, b in zip((x, y, z), HOT_SPOT_MM, strict=True))
    brain += 1.5 * np.exp(-distance / (2 * 12.0**2)).astype(np.float32)
    random = np.random.default_rng(seed).normal(0, noise, grid.shape)
    return (brain + random).astype(np.float32)


def cache(folder: Path, name: str, array: FloatArray, grid: Grid, unit: str) -> CachedImage:
    """Write one image of the cache and describe it."""
    affine = grid_affine(grid)
    dtype = np.uint8 if unit == "arbitrary" else np.float32
    write_cache(folder / name, Volume(array, affine, unit), dtype=dtype)
    rows = tuple(tuple(float(v) for v in line) for line in affine)
    return CachedImage(
        path=name, affine=rows, sha256=file_sha256(folder / name),
        mean=float(array.mean()), std=float(array.std()), minimum=float(array.min()),
        maximum=float(array.max()), p999=float(np.percentile(array, 99.9)),
    )  # fmt: skip


def make_prepared(folder: Path, num_subjects: int) -> Index:
    """Write a prepared cohort whose rows are all held out."""
    folder.mkdir(parents=True)
    rows = []
    for k in range(num_subjects):
        name = f"sub-{k + 1:02d}"
        mri = np.clip(np.round(80 * ellipsoid(MRI_GRID, 0.05, k)), 0, 255)[None]
        pet = ellipsoid(PET_GRID, 0.04, 100 + k)
        rows.append(
            Row(
                subject=f"{k + 1:02d}", session=None, tracer="FDG", unit="SUVR", split="test",
                frame_start_s=FRAME_START_S, frame_duration_s=FRAME_DURATION_S,
                mri=cache(folder, f"{name}_T1w.nii", mri.astype(np.float32), MRI_GRID, "arbitrary"),
                pet=cache(folder, f"{name}_pet.nii", np.stack([pet, 0.8 * pet]), PET_GRID, "SUVR"),
                truth=None, dseg=None, sources=("never shown",),
            )
        )  # fmt: skip
    index = Index(
        schema_version=SCHEMA_VERSION, mri_grid=MRI_GRID, pet_grid=PET_GRID,
        intensity_ratio={"FDG": 0.1}, rows=tuple(rows), versions={},
    )  # fmt: skip
    save_index(index, folder)
    return index


def write_log(run: Path, num_steps: int) -> None:
    """Write invented losses that fall from 2 to 1."""
    with (run / "log.jsonl").open("w") as stream:
        for step in range(1, num_steps + 1):
            line: dict[str, float] = {
                "step": step, "samples_seen": 8 * step, "epoch": step / 4, "seconds": 3.0,
                "volumes_per_second": 2.5, "data_wait_seconds": 0.1,
                "nsp_accuracy_real": 0.7, "nsp_accuracy_generated": 0.6,
                "learning_rate_generator": 1e-4 * min(1, step / 5),
                "learning_rate_discriminator": 1e-4 * min(1, step / 5),
            }  # fmt: skip
            line |= {name: 1 + np.exp(-step / 10) for name in LOSSES}
            stream.write(json.dumps(line) + "\n")


def write_evaluation(run: Path, index: Index, gain_db: float) -> None:
    """Write predictions, and metrics in which GANBERT is `gain_db` better than the baseline."""
    folder = run / "evaluation" / "pet_fake"
    folder.mkdir(parents=True)
    lines = []
    for k, row in enumerate(index.rows):
        fake = ellipsoid(PET_GRID, 0.0, 0)
        volume = Volume(np.stack([fake, 0.8 * fake]), grid_affine(PET_GRID), "SUVR")
        write_volume(folder / f"sub-{row.subject}.nii", volume)
        for mask in ("fov", "head"):
            for method, psnr in (("ganbert", 24 + k + gain_db), ("mean_of_training", 24 + 1.1 * k),
                                 ("zero", 9.0)):  # fmt: skip
                lines.append([row.subject, "n/a", "FDG", method, mask, "real", 0, 3,
                              psnr, psnr / 40, 3 / 10 ** (psnr / 20), 0.05,
                              0.025, psnr / 50])  # fmt: skip
    table = [COLUMNS, *lines]
    text = "\n".join("\t".join(str(value) for value in line) for line in table)
    results = summarise([dict(zip(COLUMNS, line, strict=True)) for line in lines], COLUMNS[8:],
                        SHARES)  # fmt: skip
    about = {"split": "test", "unit": "SUVR", "data_range": [0, 3], "results": results}
    about |= write_burden(run, [row.subject for row in index.rows])
    (run / "evaluation" / "summary.json").write_text(json.dumps(about))
    (run / "evaluation" / "metrics.tsv").write_text(text + "\n")


def write_burden(run: Path, subjects: list[str]) -> dict[str, Any]:
    """Write burden.tsv: 10, 20, ... CL, GANBERT 5 CL less; return what summary.json says of it."""
    lines = [
        {"subject": name, "tracer": "AV45", "method": method, "reference": "real",
         "measure": measure, "burden_real": real * scale, "burden_fake": fake * scale}
        for measure, scale in (("suvr", 0.01), ("centiloid", 1.0))
        for k, name in enumerate(subjects)
        for real in (10.0 * (k + 1),)
        for method, fake in (("ganbert", real - 5), ("mean_of_training", 20.0))
    ]  # fmt: skip
    write_tsv(run / "evaluation" / "burden.tsv", lines)
    keys = ("tracer", "reference", "method", "measure")
    burden = {
        "target_regions": ["frontal"], "reference_regions": ["pons"], "regions_source": "a test",
        "frame": 2, "num_subjects": len(subjects), "centiloid_source": "Nobody",
        "centiloid_note": "Centiloid: line of Nobody et al. 1999; here an approximation.",
        "agreement": [finite(x) for x in agreement_lines(lines, keys=keys, value="burden")],
    }  # fmt: skip
    regions = [
        {"subject": name, "tracer": "AV45", "method": "ganbert", "reference": "real",
         "region": region, "name": title, "frame": frame,
         "mean_fake": k + region + frame - 1, "mean_real": float(k)}
        for region, title in ((1, "frontal"), (2, "n/a"))
        for k, name in enumerate(subjects)
        for frame in (1, 2)
    ]  # fmt: skip
    return {"agreement": [finite(x) for x in agreement_lines(regions)], "burden": burden}


def make_run(
    folder: Path, *, num_subjects: int = 4, num_steps: int = 60, gain_db: float = 2.0,
    evaluated: bool = True,
) -> Path:  # fmt: skip
    """Write `folder`/prepared and `folder`/run, and return the latter."""
    run = folder / "run"
    index = make_prepared(folder / "prepared", num_subjects)
    run.mkdir()
    (run / "run.json").write_text(json.dumps(describe(data=str(folder / "prepared"))))
    write_log(run, num_steps)
    if evaluated:
        write_evaluation(run, index, gain_db)
    return run

"""`evaluate` on a small hand-made cohort: its figures, its baselines, and what it refuses."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from rich.console import Console

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.conform import grid_affine
from ganbert.data.index import (
    SCHEMA_VERSION,
    CachedImage,
    Index,
    Row,
    file_sha256,
    load_index,
    save_index,
)
from ganbert.data.nifti import read_cache, read_volume, write_cache
from ganbert.data.volume import FloatArray, Volume
from ganbert.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    GanbertError,
    ImageError,
    OutputError,
)
from ganbert.evaluate import evaluate, mean_of_training
from ganbert.predict import load_predictor
from ganbert.run_folder import CARD_NAME
from tests.synthetic_run import describe

QUIET = Console(file=io.StringIO())
CENTRE = (3.0, -10.0, 5.0)
MRI_AFFINE, PET_AFFINE = grid_affine(CENTRE, TINY_MRI_GRID), grid_affine(CENTRE, TINY_PET_GRID)
NAMES = {1: "target", 2: "reference", 3: "nowhere"}
# The standard composite of the phantom, all of it in one region.
COMPOSITE = ("frontal", "anterior_cingulate", "precuneus_posterior_cingulate", "lateral_parietal",
             "lateral_temporal")  # fmt: skip
STANDARD = {1: COMPOSITE[0], 2: "cerebellum", **dict(enumerate(COMPOSITE[1:], 3))}
SPLITS = {"a": "train", "b": "train", "c": "train", "d": "val", "e": "test", "f": "test"}


def cache(folder: Path, name: str, array: FloatArray, dtype: type) -> CachedImage:
    affine = MRI_AFFINE if array.shape[1:] == TINY_MRI_GRID.shape else PET_AFFINE
    write_cache(folder / name, Volume(array, affine, "SUVR"), dtype=dtype)
    return CachedImage(
        path=name,
        affine=tuple(map(tuple, affine.tolist())),
        sha256=file_sha256(folder / name),
        mean=float(array.mean()),
        std=float(array.std()),
        minimum=float(array.min()),
        maximum=float(array.max()),
        p999=float(np.percentile(array, 99.9)),
    )


def make_row(folder: Path, subject: str, split: str, session: str | None = None) -> Row:
    rng = np.random.default_rng(ord(subject))
    d, h, w = np.indices(TINY_MRI_GRID.shape) - 15.5
    ball = (d**2 + h**2 + w**2 < 10**2) * rng.uniform(150, 255, TINY_MRI_GRID.shape)
    truth = rng.uniform(0.5, 1.5, (2, *TINY_PET_GRID.shape)).astype(np.float32)
    pet = truth + rng.normal(0, 0.1, truth.shape).astype(np.float32)
    labels = np.zeros((1, *TINY_PET_GRID.shape), np.float32)
    labels[0, 4:6, 4:6, 4:6], labels[0, 6:8, 4:6, 4:6] = 1, 2
    name = subject + (session or "")
    return Row(
        subject=subject,
        session=session,
        tracer="AV45",
        unit="SUVR",
        split=split,
        frame_start_s=(3000.0, 3300.0),
        frame_duration_s=(300.0, 300.0),
        mri=cache(folder, f"{name}_T1w.nii", np.rint(ball)[None].astype(np.float32), np.uint8),
        pet=cache(folder, f"{name}_pet.nii", pet, np.float32),
        truth=cache(folder, f"{name}_truth.nii", truth, np.float32),
        dseg=cache(folder, f"{name}_dseg.nii", labels, np.uint8),
        sources=(),
    )


def write_run(run: Path, prepared: Path) -> None:
    digest = file_sha256(prepared / "index.json")
    description = describe(data=str(prepared), index_sha256=digest)
    (run / "run.json").write_text(json.dumps(description))
    write_card(run, index_sha256=digest)


def write_card(run: Path, **changes: Any) -> None:
    file = run / "export" / CARD_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def run(tmp_path: Path, tiny_export: Path) -> Path:
    """A run and, beside it, the prepared folder `data`."""
    prepared = tmp_path / "data"
    prepared.mkdir()
    index = Index(
        schema_version=SCHEMA_VERSION,
        mri_grid=TINY_MRI_GRID,
        pet_grid=TINY_PET_GRID,
        intensity_ratio={"AV45": 0.01},
        rows=tuple(make_row(prepared, subject, split) for subject, split in SPLITS.items()),
        versions={},
        region_names=NAMES,
    )
    save_index(index, prepared)
    shutil.copytree(tiny_export, tmp_path / "run" / "export")
    write_run(tmp_path / "run", prepared)
    return tmp_path / "run"


def read_tsv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_every_image_method_mask_and_reference_has_its_line(run: Path) -> None:
    lines = read_tsv(evaluate(run, console=QUIET) / "metrics.tsv")
    assert list(lines[0]) == [
        "subject", "session", "tracer", "method", "mask", "reference",
        "data_range_low", "data_range_high", "psnr", "ssim", "rmse", "mae",
        "intensity_distance", "top_recall",
    ]  # fmt: skip
    keys = {(x["subject"], x["method"], x["mask"], x["reference"]) for x in lines}
    assert len(lines) == len(keys) == 2 * 3 * 2 * 2
    assert {x["subject"] for x in lines} == {"e", "f"}
    assert {(x["data_range_low"], x["data_range_high"]) for x in lines} == {("0", "3")}


def test_the_figures_are_those_of_the_images(run: Path) -> None:
    lines = read_tsv(evaluate(run, console=QUIET) / "metrics.tsv")
    prepared = run.parent / "data"
    row = load_index(prepared).rows[4]
    real = read_cached(prepared, row.pet)
    baseline = mean_of_training(prepared, load_index(prepared).select("train"))
    expected = {
        "zero": float(np.sqrt(np.mean(real**2))),
        "mean_of_training": float(np.sqrt(np.mean((real - baseline) ** 2))),
    }
    for method, rmse in expected.items():
        line = only(lines, subject="e", method=method, mask="fov", reference="real")
        assert float(line["rmse"]) == pytest.approx(rmse, rel=1e-4)
        assert float(line["psnr"]) == pytest.approx(20 * np.log10(3.0 / rmse), rel=1e-4)


def only(lines: list[dict[str, str]], **wanted: str) -> dict[str, str]:
    found = [x for x in lines if all(x[key] == value for key, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def read_cached(folder: Path, image: CachedImage) -> FloatArray:
    return read_cache(folder / image.path).array


def test_the_mean_of_training_is_the_mean_of_the_training_rows_alone(run: Path) -> None:
    prepared = run.parent / "data"
    pets = [read_cached(prepared, row.pet) for row in load_index(prepared).rows]
    baseline = mean_of_training(prepared, load_index(prepared).select("train"))
    np.testing.assert_allclose(baseline, np.mean(pets[:3], axis=0), rtol=1e-5)


def test_the_predictions_are_kept_in_their_place(run: Path) -> None:
    folder = evaluate(run, console=QUIET) / "pet_fake"
    assert sorted(path.name for path in folder.iterdir()) == ["sub-e.nii", "sub-f.nii"]
    pet = read_volume(folder / "sub-e.nii", "SUVR")
    np.testing.assert_allclose(pet.affine, PET_AFFINE, atol=1e-4)
    row = load_index(run.parent / "data").rows[4]
    mri = read_cached(run.parent / "data", row.mri)
    again = load_predictor(run, "cpu").predict_conformed(mri, row.mri.mean, row.mri.std)
    np.testing.assert_allclose(pet.array, again, atol=1e-6)


def test_regions_tell_the_bias_of_each(run: Path) -> None:
    lines = read_tsv(evaluate(run, console=QUIET) / "regions.tsv")
    assert len(lines) == 2 * 2 * 2 * 2 * 2  # subjects, methods, references, regions, frames
    line = only(lines, subject="e", method="mean_of_training", reference="real",
                region="2", frame="2")  # fmt: skip
    prepared = run.parent / "data"
    real = read_cached(prepared, load_index(prepared).rows[4].pet)[1, 6:8, 4:6, 4:6].mean()
    baseline = mean_of_training(prepared, load_index(prepared).rows[:3])[1, 6:8, 4:6, 4:6].mean()
    assert int(line["num_voxels"]) == 8
    assert float(line["mean_real"]) == pytest.approx(real, rel=1e-4)
    assert float(line["bias"]) == pytest.approx(baseline - real, abs=1e-4)


def test_zero_recalls_by_chance_and_lies_as_far_as_the_mean(run: Path) -> None:
    lines = read_tsv(evaluate(run, console=QUIET) / "metrics.tsv")
    prepared = run.parent / "data"
    real = read_cached(prepared, load_index(prepared).rows[4].pet)
    line = only(lines, subject="e", method="zero", mask="fov", reference="real")
    assert float(line["intensity_distance"]) == pytest.approx(np.abs(real).mean(), rel=1e-4)
    assert float(line["top_recall"]) == pytest.approx(0.01, abs=1e-3)


def test_agreement_is_over_subjects_per_region_frame_and_method(run: Path) -> None:
    folder = evaluate(run, console=QUIET)
    lines = read_tsv(folder / "agreement.tsv")
    assert len(lines) == 2 * 2 * 2 * 2  # methods, references, regions, frames
    line = only(lines, method="ganbert", reference="truth", region="2", frame="2")
    biases = [
        float(x["bias"])
        for x in read_tsv(folder / "regions.tsv")
        if (x["method"], x["reference"], x["region"], x["frame"]) == ("ganbert", "truth", "2", "2")
    ]
    assert line["num"] == "2"
    assert float(line["bias"]) == pytest.approx(np.mean(biases), rel=1e-3)
    # Two subjects always correlate, and have one difference: no limits, no interval.
    assert {value for name, value in line.items() if name.endswith(("_low", "_high"))} == {"n/a"}
    assert line["upper_limit"] == line["lower_limit"] == "n/a"
    assert line["pearson"] == line["concordance"] == "n/a"
    content = json.loads((folder / "summary.json").read_text())
    assert len(content["agreement"]) == len(lines)
    assert content["agreement"][0]["pearson"] is None
    assert {"intensity_distance", "top_recall"} <= {x["metric"] for x in content["results"]}


def test_of_two_subjects_no_interval_is_stated(run: Path) -> None:
    said = Console(file=io.StringIO(), width=80)
    folder = evaluate(run, console=said)
    bounds = {(x["low"], x["high"]) for x in read_tsv(folder / "summary.tsv")}
    assert bounds == {("n/a", "n/a")}
    text = " ".join(said.file.getvalue().split())  # type: ignore[attr-defined]
    assert "n too small (below 3)" in text
    assert "\u00b1" not in text
    assert "95 %" not in text


def test_regions_carry_their_names(run: Path) -> None:
    rename_regions(run, {1: "target"})
    folder = evaluate(run, console=QUIET)
    for table in ("regions.tsv", "agreement.tsv"):
        pairs = {(x["region"], x["name"]) for x in read_tsv(folder / table)}
        assert pairs == {("1", "target"), ("2", "n/a")}


def rename_regions(run: Path, names: dict[int, str]) -> None:
    prepared = run.parent / "data"
    save_index(load_index(prepared).model_copy(update={"region_names": names}), prepared)
    write_run(run, prepared)


def ask_for(run: Path, target: str, reference: str, console: Console = QUIET) -> Path:
    return evaluate(run, target_regions=[target], reference_regions=[reference], console=console)


def test_the_burden_is_in_the_last_frame_and_divided_by_each_own_reference(run: Path) -> None:
    rename_regions(run, STANDARD)
    folder = evaluate(run, console=QUIET)
    lines = read_tsv(folder / "burden.tsv")
    assert len(lines) == 2 * 2 * 2 * 2  # subjects, references, methods, measures
    prepared = run.parent / "data"
    rows = load_index(prepared).rows
    images = (read_cached(prepared, rows[4].pet), mean_of_training(prepared, rows[:3]))
    real, baseline = (p[1, 4:6, 4:6, 4:6].mean() / p[1, 6:8, 4:6, 4:6].mean() for p in images)
    line = only(lines, subject="e", method="mean_of_training", reference="real", measure="suvr")
    assert float(line["burden_real"]) == pytest.approx(real, rel=1e-4)
    assert float(line["burden_fake"]) == pytest.approx(baseline, rel=1e-4)
    assert (line["frame"], line["num_target_voxels"]) == ("2", "8")
    scaled = only(lines, subject="e", method="mean_of_training", reference="real",
                  measure="centiloid")  # fmt: skip
    assert float(scaled["burden_real"]) == pytest.approx(183.07 * real - 177.26, rel=1e-3)
    # Of two subjects the bias is the mean of both.
    agreement = read_tsv(folder / "burden_agreement.tsv")
    keys = {"method": "mean_of_training", "reference": "real", "measure": "suvr"}
    biases = [float(only(lines, subject=s, **keys)["bias"]) for s in "ef"]
    of_both = only(agreement, **keys)
    assert float(of_both["bias"]) == pytest.approx(np.mean(biases), rel=1e-3)
    burden = json.loads((folder / "summary.json").read_text())["burden"]
    assert burden["target_regions"] == list(COMPOSITE)
    assert len(burden["agreement"]) == len(agreement) == 8


def test_regions_of_ones_own_have_no_centiloid(run: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    folder = ask_for(run, "target", "reference", console)
    lines = read_tsv(folder / "burden.tsv")
    assert len(lines) == 2 * 2 * 2  # subjects, references, methods
    assert {x["measure"] for x in lines} == {"suvr"}
    text = " ".join(console.file.getvalue().split())
    assert "SUVR of target over reference" in text
    assert "No Centiloid: it is defined for the standard cortical composite" in text


def test_the_tables_fit_80_columns_and_name_the_source(run: Path) -> None:
    rename_regions(run, STANDARD)
    console = Console(file=io.StringIO(), width=80)
    evaluate(run, console=console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text
    words = " ".join(text.split())
    for part in ("Wasserstein-1 (SUVR)", "recall of top 1 %", "lateral_temporal over cerebellum",
                 "frame 2 (the last)", "Navitsky et al. 2018", "an approximation"):  # fmt: skip
        assert part in words


def test_without_known_regions_the_burden_is_left_out_in_one_line(run: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    folder = evaluate(run, console=console)
    (line,) = [x for x in console.file.getvalue().splitlines() if "No burden" in x]
    assert "--target-regions" in line
    assert not list(folder.glob("burden*"))
    assert json.loads((folder / "summary.json").read_text())["burden"] is None


def test_a_region_that_no_subject_has_leaves_gaps(run: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    lines = read_tsv(ask_for(run, "nowhere", "reference", console) / "burden.tsv")
    assert {x["burden_real"] for x in lines} == {"n/a"}
    assert "0 of 2 subjects" in " ".join(console.file.getvalue().split())


def test_an_unknown_region_is_refused_before_any_work(run: Path) -> None:
    with pytest.raises(ConfigError, match="'targt'; did you mean 'target'"):
        ask_for(run, "targt", "reference")
    assert not (run / "evaluation").exists()


def test_the_summary_states_range_interval_and_paired_gain(run: Path) -> None:
    folder = evaluate(run, console=QUIET)
    content = json.loads((folder / "summary.json").read_text())
    assert content["data_range"] == [0.0, 3.0]
    assert content["ssim_window"] == 9
    assert content["num_subjects"] == 2
    metrics = read_tsv(folder / "metrics.tsv")
    gains = [
        float(only(metrics, subject=s, method="ganbert", mask="head", reference="real")["psnr"])
        - float(
            only(metrics, subject=s, method="mean_of_training", mask="head", reference="real")[
                "psnr"
            ]
        )
        for s in ("e", "f")
    ]
    lines = read_tsv(folder / "summary.tsv")
    line = only(lines, method="ganbert - mean_of_training", metric="psnr", mask="head",
                reference="real")  # fmt: skip
    assert float(line["mean"]) == pytest.approx(np.mean(gains), abs=1e-3)
    assert line["low"] == line["high"] == "n/a"  # of two subjects
    assert line["num"] == "2"
    lines = read_tsv(evaluate(run, split="train", console=QUIET) / "summary.tsv")
    line = only(lines, method="ganbert - mean_of_training", metric="psnr", mask="head",
                reference="real")  # fmt: skip
    assert line["num"] == "3"
    assert float(line["low"]) < float(line["mean"]) < float(line["high"])


def test_the_table_shows_the_methods_and_the_range(run: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    evaluate(run, console=console)
    text = console.file.getvalue()
    for word in ("GANBERT", "training mean", "zero", "difference", "0 to 3 SUVR", "window 9"):
        assert word in text


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("none", "L1 alone"),
        ("patchgan", "pix2pix (PatchGAN)"),
        ("bert_patchgan", "GANBERT with CNN-D"),
    ],
)
def test_the_tables_call_the_run_what_it_is_and_the_files_as_ever(
    kind: str, name: str, run: Path
) -> None:
    rename_regions(run, STANDARD)
    description = json.loads((run / "run.json").read_text())
    description["recipe"]["run"]["discriminator"]["kind"] = kind
    (run / "run.json").write_text(json.dumps(description))
    console = Console(file=io.StringIO(), width=80)
    folder = evaluate(run, console=console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text
    assert text.replace("\n", " ").count(name.partition(" ")[0]) == 3 + 2
    assert json.loads((folder / "summary.json").read_text())["method_name"] == name
    for table in ("metrics", "summary", "regions", "agreement", "burden", "burden_agreement"):
        methods = {line["method"] for line in read_tsv(folder / f"{table}.tsv")}
        assert {"ganbert", "mean_of_training"} <= methods


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_second_evaluation_is_the_same_and_replaces_the_first(run: Path) -> None:
    first = files_of(evaluate(run, console=QUIET))
    (run / "evaluation" / "stale.txt").touch()
    assert files_of(evaluate(run, console=QUIET)) == first


def test_a_moved_folder_is_given_and_a_changed_one_refused(run: Path, tmp_path: Path) -> None:
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(DatasetError, match="--data"):
        evaluate(run, console=QUIET)
    assert evaluate(run, data=moved, split="val", console=QUIET).is_dir()
    (moved / "index.json").write_text((moved / "index.json").read_text() + "\n")
    with pytest.raises(DatasetError, match="another one"):
        evaluate(run, data=moved, console=QUIET)


def test_a_generator_of_another_training_is_refused(run: Path) -> None:
    # Its split may be another one: subjects that it was trained on would count as held out.
    write_card(run, index_sha256="f" * 64)
    with pytest.raises(DatasetError, match=r"trained on \(ffffffffffff\.\.\.\), found another"):
        evaluate(run, console=QUIET)
    assert not (run / "evaluation").exists()


def test_a_run_that_cannot_be_written_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match=r"evaluation: .*Permission denied"):
        evaluate(run, console=QUIET)


def drop_test_rows(run: Path) -> None:
    prepared = run.parent / "data"
    index = load_index(prepared)
    save_index(index.model_copy(update={"rows": index.rows[:4]}), prepared)
    write_run(run, prepared)


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda run: (run / "run.json").unlink(), CheckpointError, "description of a run"),
        (lambda run: (run / "run.json").write_text("{"), CheckpointError, "description of a run"),
        (lambda run: (run / "run.json").write_text("{}"), CheckpointError, "without data"),
        (lambda run: shutil.rmtree(run / "export"), CheckpointError, "train it further"),
        (lambda run: (run.parent / "data" / "f_pet.nii").unlink(), ImageError, "f_pet.nii"),
        (drop_test_rows, DatasetError, "found none"),
    ],
)
def test_what_is_missing_is_one_line_and_leaves_nothing(
    run: Path, damage: Any, kind: type[GanbertError], message: str
) -> None:
    damage(run)
    with pytest.raises(kind, match=message) as caught:
        evaluate(run, console=QUIET)
    assert "\n" not in str(caught.value)
    assert not [path for path in run.iterdir() if path.name.startswith("evaluation")]


def test_what_a_later_version_adds_and_a_dataset_lacks_is_not_in_the_index(
    run: Path,
) -> None:
    # Runs know their index by its checksum.
    prepared = run.parent / "data"
    named = load_index(prepared)
    unnamed = named.model_copy(update={"region_names": {}})
    save_index(unnamed, prepared)
    content = json.loads((prepared / "index.json").read_text())
    assert content.keys().isdisjoint({"region_names", "frames", "reference"})
    assert load_index(prepared) == unnamed
    save_index(named, prepared)
    assert load_index(prepared) == named

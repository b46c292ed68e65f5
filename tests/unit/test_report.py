"""The report: what it says about a run, and that its anatomy is the right way up."""

import io
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ganbert.data.volume import Volume
from ganbert.errors import CheckpointError, DatasetError, GanbertError, OutputError
from ganbert.metrics import summarise
from ganbert.report import write_report
from ganbert.report.agreement import read_subjects
from ganbert.report.charts import draw_strip, draw_training, running_mean, thin
from ganbert.report.panels import PIXELS_PER_MM, choose_view, place_labels, round_up, sample_plane
from ganbert.report.pictures import choose_images
from ganbert.report.run import (
    MetricRow,
    Summary,
    check_run,
    compare_weights,
    read_log,
    read_metrics,
    read_settings,
    read_summary,
)
from ganbert.report.scores import (
    format_number,
    headline_rows,
    judge,
    make_tables,
    score_tiles,
)
from ganbert.step_stats import StepStats
from tests.synthetic_run import HOT_SPOT_MM, PET_GRID, ellipsoid, grid_affine, make_run

OURS = "GANBERT"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = make_run(tmp_path_factory.mktemp("report"))
    return write_report(run).read_text(encoding="utf-8")


def row(subject: str, method: str, psnr: float, mask: str = "head") -> MetricRow:
    values = {"psnr": psnr, "ssim": 0.9, "rmse": 0.1, "mae": 0.05}
    return MetricRow(subject, None, "FDG", method, mask, "real", (0.0, 3.0), values)


def line(subject: str, method: str, psnr: float, **changes: Any) -> dict[str, Any]:
    keys = {"subject": subject, "tracer": "FDG", "reference": "real", "mask": "head"}
    figures = {"psnr": psnr, "ssim": 0.9, "rmse": 0.1, "mae": 0.05}
    return {**keys, "method": method, **figures, **changes}


def lines_with_gains(*gains: float) -> list[dict[str, Any]]:
    pairs = [
        (line(f"{k:02d}", "ganbert", 20 + k + gain), line(f"{k:02d}", "mean_of_training", 20 + k))
        for k, gain in enumerate(gains)
    ]
    return [one for pair in pairs for one in pair]


def summary_of(lines: list[dict[str, Any]], tmp_path: Path, split: str = "test") -> Summary:
    """Return what the report reads after `evaluate` has summarised `lines`."""
    about = {"split": split, "unit": "SUVR", "data_range": [0, 3], "results": summarise(lines)}
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "summary.json").write_text(json.dumps(about).replace("NaN", "null"))
    summary = read_summary(tmp_path)
    assert summary is not None
    return summary


@pytest.mark.parametrize(
    ("gains", "tone"),
    [
        ((2.0, 2.2, 1.8), "better"),
        ((-2.0, -2.2, -1.8), "worse"),
        ((2.0, -2.0, 0.1), "unclear"),
        ((5.0,), "unclear"),
        ((2.0, 2.001), "unclear"),  # of two a narrow interval is chance
        ((), "none"),
    ],
)
def test_verdict_is_honest(gains: tuple[float, ...], tone: str, tmp_path: Path) -> None:
    assert judge(summary_of(lines_with_gains(*gains), tmp_path), OURS).tone == tone


def test_verdict_without_an_evaluation_is_none() -> None:
    assert judge(None, OURS).tone == "none"
    assert score_tiles(None) == make_tables(None, OURS) == []


def test_verdict_states_the_paired_interval(tmp_path: Path) -> None:
    # Gains 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.3027, half width 2.484.
    sentence = judge(summary_of(lines_with_gains(1, 2, 3), tmp_path), OURS).sentence
    assert "3 held-out subjects" in sentence
    assert "+2.00 dB, 95% confidence interval \u22120.48 to +4.48 dB" in sentence


def burden(bias: float, lin: float, *interval: float) -> dict[str, dict[str, float]]:
    low, high = interval or (math.nan, math.nan)
    figures = {"bias": bias, "bias_low": bias - 0.1, "bias_high": bias + 0.1, "concordance": lin,
               "concordance_low": low, "concordance_high": high}  # fmt: skip
    return {"ganbert": figures, "mean_of_training": figures | {"bias": 0.01, "concordance": 0.67}}


def test_a_higher_psnr_without_a_burden_is_not_called_better(tmp_path: Path) -> None:
    summary = summary_of(lines_with_gains(2.0, 2.2, 1.8), tmp_path)
    verdict = judge(summary, OURS, burden(-0.248, 0.02, -0.11, 0.14))
    assert verdict.tone == "unclear"
    assert verdict.headline == (
        "GANBERT has a higher PSNR than the mean of the training PETs; burden (SUVR of the "
        "composite): bias \u22120.248, Lin's concordance 0.02"
    )
    assert verdict.sentence.endswith(
        " Burden: bias \u22120.248 [\u22120.348, \u22120.148] SUVR, Lin's concordance with the "
        "real PET 0.02 [\u22120.11, 0.14]; of the mean of the training PETs +0.010 and 0.67."
    )
    assert judge(summary, OURS, burden(0.0, 0.9, 0.8, 0.95)).tone == "better"


def test_a_burden_of_too_few_subjects_is_said_to_be(tmp_path: Path) -> None:
    summary = summary_of(lines_with_gains(2.0), tmp_path)
    verdict = judge(summary, OURS, burden(-0.1, math.nan))
    assert verdict.headline.startswith("No confidence interval: too few subjects; burden")
    assert verdict.headline.endswith("Lin's concordance n/a")
    assert judge(summary, OURS, burden(math.nan, math.nan)).headline.endswith(
        "; no subject has a burden (SUVR of the composite)"
    )


def test_sessions_of_a_subject_are_not_further_subjects(tmp_path: Path) -> None:
    # Subject 00 has gains 0 and 2 in two sessions, mean 1; subjects 01 and 02 have
    # gains of 3 and 2. Over subjects: mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.3027.
    # Over images the mean would be 7 / 4.
    lines = lines_with_gains(0, 3, 2) + lines_with_gains(2)
    summary = summary_of(lines, tmp_path)
    verdict = judge(summary, OURS)
    assert verdict.tone == "unclear"
    assert "On 3 held-out subjects" in verdict.sentence
    assert "+2.00 dB, 95% confidence interval \u22120.48 to +4.48 dB" in verdict.sentence
    # GANBERT's PSNR: subject means 21, 24 and 24.
    assert [(tile.value, tile.unit) for tile in score_tiles(summary)] == [
        ("23.00", "dB"), ("0.900", ""), ("+2.00", "dB"), ("3", ""),
    ]  # fmt: skip
    table = make_tables(summary, OURS)[0]
    assert table.subjects == "3 held-out subjects"
    assert dict(table.rows)["GANBERT"][0].mean == "23.00"
    assert dict(table.rows)["Mean of training PETs"][0].mean == "21.00"


def evaluated_weights(run: Path, **of: Any) -> None:
    file = run / "evaluation" / "summary.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | of))


def test_an_evaluation_of_other_weights_is_not_shown_as_current(
    tmp_path: Path, tiny_export: Path
) -> None:
    run = make_run(tmp_path)
    (tmp_path / "prepared").rename(tmp_path / "moved")  # pictures take time
    shutil.copytree(tiny_export, run / "export")
    card = json.loads((run / "export" / "generator.json").read_text())
    evaluated_weights(run, num_steps=1, weights_sha256=card["weights_sha256"])
    said = io.StringIO()
    assert "Out of date" not in write_report(run, console=Console(file=said)).read_text("utf-8")
    assert said.getvalue() == ""
    evaluated_weights(run, num_steps=200, weights_sha256="f" * 64)
    page = write_report(run, console=Console(file=said, width=40)).read_text(encoding="utf-8")
    text = "This evaluation is of other weights (step 200) than the run has now (step 1); " \
           "run `ganbert evaluate RUN` again."  # fmt: skip
    assert said.getvalue() == f"warning: {text}\n"
    head, _, rest = page.partition("<h2>Numbers</h2>")
    for part in (head, rest.partition("<h2>")[0]):
        assert text in part


def test_an_evaluation_that_does_not_say_its_weights_is_said_to(
    tmp_path: Path, tiny_export: Path
) -> None:
    summary = summary_of(lines_with_gains(1, 2), tmp_path)
    assert compare_weights(tmp_path, summary) == compare_weights(tmp_path, None) == ""
    shutil.copytree(tiny_export, tmp_path / "export")
    assert "does not say which weights it is of" in compare_weights(tmp_path, summary)
    assert compare_weights(tmp_path, None) == ""


def test_verdict_does_not_call_training_subjects_held_out(tmp_path: Path) -> None:
    summary = summary_of(lines_with_gains(1, 2, 3), tmp_path, split="train")
    assert "not held out" in judge(summary, OURS).sentence


def test_headline_prefers_the_head_mask(tmp_path: Path) -> None:
    lines = lines_with_gains(1, 1)
    summary = summary_of([one | {"mask": "fov", "psnr": 9} for one in lines] + lines, tmp_path)
    assert summary.headline_mask == "head"
    value = summary.headline("ganbert", "psnr")
    assert value is not None
    assert value.mean == 21.5
    rows = [row("01", "ganbert", 20, "fov"), row("01", "ganbert", 18, "head")]
    assert [one.values["psnr"] for one in headline_rows(rows, "head")] == [18]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"split": "test", "results": [{}]}'])
def test_a_torn_summary_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "summary.json").write_text(text)
    with pytest.raises(DatasetError, match="ganbert evaluate"):
        read_summary(tmp_path)


def test_zero_has_no_sign() -> None:
    assert format_number(-0.4, 0, signed=True) == "0"
    assert format_number(-0.0, 2) == "0.00"
    assert format_number(-0.6, 0, signed=True) == "\u22121"


def test_best_median_and_worst_are_chosen_by_psnr() -> None:
    rows = [row(f"{k}", "ganbert", psnr) for k, psnr in enumerate((21.0, 25.0, 23.0, 24.0, 22.0))]
    chosen = [(rank, line.values["psnr"]) for rank, line in choose_images(rows)]
    assert chosen == [("best", 25.0), ("median", 23.0), ("worst", 21.0)]
    assert [rank for rank, _ in choose_images(rows[:2])] == ["best", "worst"]


def test_table_marks_the_best_mean_in_both_directions(tmp_path: Path) -> None:
    lines = lines_with_gains(1, 1)
    lines[1]["rmse"] = 0.01
    table = make_tables(summary_of(lines, tmp_path), OURS)[0]
    best = {name: [cell.is_best for cell in cells] for name, cells in table.rows}
    assert best["GANBERT"][0]
    assert best["Mean of training PETs"][2]
    assert table.heads[2] == ("RMSE, SUVR", "lower")


def test_log_of_a_resumed_run_keeps_the_last_line_of_a_step(tmp_path: Path) -> None:
    lines = [{"step": s, "loss_l1": loss} for s, loss in ((1, 9.0), (2, 8.0), (3, 7.0), (2, 5.0))]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "log.jsonl").write_text(text + '\n{"step": 3, "loss')
    log = read_log(tmp_path)
    assert log.steps.tolist() == [1, 2, 3]
    assert log.columns["loss_l1"].tolist() == [9.0, 5.0, 7.0]


def test_log_torn_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="line 2"):
        read_log(tmp_path)


def test_metrics_without_a_column_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.tsv").write_text("subject\tsession\n01\tn/a\n")
    with pytest.raises(DatasetError, match="ganbert evaluate"):
        read_metrics(tmp_path)


PARTS: dict[str, Callable[[Path], object]] = {
    "run.json": read_settings,
    "log.jsonl": read_log,
    "evaluation/summary.json": read_summary,
    "evaluation/metrics.tsv": read_metrics,
    "evaluation/burden.tsv": lambda run: read_subjects(run, "SUVR", OURS),
    "export/generator.json": lambda run: compare_weights(run, read_summary(run)),
}
# Of Python, of its json, csv and numpy, and of pydantic.
PYTHON_WORDS = re.compile(
    r"Error|NoneType|Expecting|delimiter|line \d+ column|\bchar \d|codec|float\(|int\(|subscript"
    r"|indices|dict|positional"
)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, tiny_export: Path) -> Path:
    run = make_run(tmp_path_factory.mktemp("whole"), num_steps=4)
    shutil.copytree(tiny_export, run / "export")
    return run


def complaint(file: Path, content: bytes, read: Callable[[], object]) -> str:
    """What is said of a file with this content; "" if nothing. The file is put back."""
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        read()
    except GanbertError as error:
        return str(error)
    finally:
        file.write_bytes(before)
    return ""


@pytest.mark.parametrize("name", PARTS)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_a_torn_file_is_one_plain_line(name: str, whole_run: Path, data: st.DataObject) -> None:
    file = whole_run / name
    content = file.read_bytes()
    cut = data.draw(st.integers(0, len(content.rstrip()) - 1))  # without its last \n it is whole
    junk = data.draw(st.sampled_from((b"", b"\0" * 8, b"\xff\xfe", b"[]", b"{}", b"\n")))
    text = complaint(file, content[:cut] + junk, lambda: PARTS[name](whole_run))
    # A log or a table that ends earlier is whole.
    assert text or file.suffix != ".json"
    assert not text or text.startswith(f"{file}: expected ")
    assert not PYTHON_WORDS.search(text.removeprefix(f"{file}"))
    assert "\n" not in text


@pytest.mark.parametrize(
    ("key", "value"),
    [("results", 3), ("data_range", [1]), ("agreement", [[1]]), ("agreement", 1), ("burden", "x"),
     ("results", [{"mean": "x"}]), ("burden", {"agreement": [None]})],
)  # fmt: skip
def test_values_of_another_kind_are_one_plain_line(
    key: str, value: object, whole_run: Path
) -> None:
    file = whole_run / "evaluation" / "summary.json"
    content = json.dumps(json.loads(file.read_text()) | {key: value}).encode()

    def read() -> None:
        read_summary(whole_run)
        read_subjects(whole_run, "SUVR", OURS)

    text = complaint(file, content, read)
    assert text.startswith(f"{file}: expected ")
    assert text.endswith("; run `ganbert evaluate` again")
    assert not PYTHON_WORDS.search(text.removeprefix(f"{file}"))


@pytest.mark.parametrize("make", [lambda p: p / "none", lambda p: p])
def test_what_is_no_run_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(CheckpointError, match="run folder"):
        check_run(make(tmp_path))
    with pytest.raises(CheckpointError):
        write_report(make(tmp_path))
    assert not list(tmp_path.iterdir())


def test_anatomy_is_the_right_way_up() -> None:
    """The hot spot at the left, front and top comes out at the left, front and top."""
    array = ellipsoid(PET_GRID, 0.0, 0)[None]
    pet = Volume(array, grid_affine(PET_GRID), "SUVR")
    view = choose_view(pet)
    x, y, z = HOT_SPOT_MM
    view = type(view)(HOT_SPOT_MM, view.low_mm, view.high_mm)
    for plane, (across, up) in enumerate(((x, y), (x, z), (y, z))):
        image = sample_plane(pet, 0, view, plane)
        top, left = np.unravel_index(np.argmax(image), image.shape)
        height, width = image.shape
        assert (left - width / 2) / PIXELS_PER_MM == pytest.approx(across, abs=5)
        assert (height / 2 - top) / PIXELS_PER_MM == pytest.approx(up, abs=5)


def test_anatomy_keeps_its_proportions_whatever_the_spacing() -> None:
    array = ellipsoid(PET_GRID, 0.0, 0)[None]
    pet = Volume(array, grid_affine(PET_GRID), "SUVR")
    image = sample_plane(pet, 0, choose_view(pet), 2) > 0.5  # sagittal, half axes 78 and 58 mm
    height, width = (np.ptp(np.flatnonzero(image.any(axis=axis))) for axis in (1, 0))
    assert width / PIXELS_PER_MM == pytest.approx(2 * 78, abs=10)
    assert height / PIXELS_PER_MM == pytest.approx(2 * 58, abs=12)


def test_letters_follow_the_neurological_convention() -> None:
    pet = Volume(ellipsoid(PET_GRID, 0.0, 0)[None], grid_affine(PET_GRID), "SUVR")
    labels = place_labels(choose_view(pet))
    axial = {label.text: label for label in labels[:4]}
    assert axial["L"].left < 50 < axial["R"].left
    assert axial["A"].top < axial["P"].top
    assert [label.text for label in labels[8:]] == ["P", "A", "S", "I"]


@given(st.floats(1e-6, 1e6))
def test_ends_of_a_scale_are_round_and_not_below(value: float) -> None:
    end = round_up(value)
    assert end >= value * (1 - 1e-6)
    assert end <= 1.5 * value * (1 + 1e-6)


def test_every_loss_of_the_log_has_a_line_in_a_chart() -> None:
    losses = [field.name for field in fields(StepStats) if field.name.startswith("loss_")]
    assert "loss_r1_discriminator" in losses
    for number, name in enumerate(losses, start=2):
        steps, nothing = np.arange(1.0, 4.0), np.full(3, math.nan)
        columns = dict.fromkeys(losses, nothing) | {name: np.full(3, float(number))}
        (drawing,) = draw_training(steps, columns)
        assert f"ends at {number}" in drawing.description
    assert draw_training(steps, dict.fromkeys(losses, nothing)) == []


@given(st.integers(1, 3000), st.integers(1, 60))
def test_curves_are_thinned_and_smoothed_without_bias(size: int, width: int) -> None:
    values = np.full(size, 3.5)
    assert thin(values).size == min(size, 400)
    assert np.allclose(thin(values), 3.5)
    assert np.allclose(running_mean(values, min(width, size)), 3.5)


def test_page_has_every_part(page: str) -> None:
    for text in ("GANBERT has a higher PSNR than the mean", "Lin&#39;s concordance 0.93",
                 "research only", "PSNR, dB",
                 "0 to 3 SUVR", "neurological convention", "Frame 1: 50\u201355 min", "log axis",
                 "BERT (NSP) tells real from", "deepspeed --num_gpus 2",
                 "arXiv:2008.04393"):  # fmt: skip
        assert text in page
    # Three subjects, four columns, two frames but for the MRI, and a colour bar each.
    assert page.count("<img") == 3 * (1 + 3 * 2) + 3 * 4
    assert "Missing:" not in page


@pytest.mark.parametrize(
    ("kind", "name", "method"),
    [
        ("none", "L1 alone", "It has no adversary"),
        ("patchgan", "pix2pix (PatchGAN)", "Its adversary is a conditional 3D PatchGAN"),
        ("bert_patchgan", "GANBERT with CNN-D", "Beside BERT a CNN"),
    ],
)
def test_a_run_is_called_what_it_is(kind: str, name: str, method: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "prepared").rename(tmp_path / "moved")  # pictures take time
    content = json.loads((run / "run.json").read_text())
    content["recipe"]["run"]["discriminator"]["kind"] = kind
    (run / "run.json").write_text(json.dumps(content))
    page = write_report(run).read_text(encoding="utf-8")
    assert f"{name} has a higher PSNR than the mean of the training PETs" in page
    assert f"held-out subjects, {name} reaches a PSNR" in page
    assert f'<th scope="row">{name}</th>' in page
    assert f'<th scope="row">{name}, Centiloid (CL)</th>' in page
    assert f"{name} is better than the mean of the training PETs in 4" in page
    assert f"Agreement of regional means, {name}, frame 2" in page
    assert method in page
    # What is left is the name of the software and of the paper.
    if "GANBERT" not in name:
        text = re.sub(r"GANBERT (run report|report|version|0\.|: Gen)|<cite>.*?</cite>", "", page)
        assert "GANBERT" not in text


def section(page: str, heading: str) -> str:
    """Text of one section, its charts left out."""
    found = re.search(rf"<section>\s*<h2>{heading}</h2>.*?</section>", page, re.DOTALL)
    assert found
    return re.sub(r"<svg.*?</svg>", "", found[0], flags=re.DOTALL)


def test_page_shows_distance_and_recall(page: str) -> None:
    text = section(page, "Numbers")
    assert "Wasserstein-1, SUVR" in text
    assert "Recall of top 1 %" in text


def test_page_shows_the_burden_and_its_source(page: str) -> None:
    text = section(page, "Regions and burden")
    # GANBERT reads 5 CL too little in every subject: the limits are the bias.
    for part in ("GANBERT, Centiloid (CL)", "\u22125.0", "\u22125.0 to \u22125.0",
                 "SUVR of frontal over pons", "in frame 2 (the last", "4 of 4 subjects",
                 "line of Nobody et al. 1999", "approximation"):  # fmt: skip
        assert part in text
    assert 'aria-label="Bland-Altman plot of the Centiloid burden, GANBERT against the real PET, ' \
           '4 subjects: bias \u22125.0 CL' in text  # fmt: skip
    assert "synthesised \u2212 real, CL" in page
    assert "mean of synthesised and real, CL" in page


def test_regions_are_of_the_last_frame_and_named_where_known(page: str) -> None:
    text = section(page, "Regions and burden")
    rows = re.findall(r'<th scope="row">([^<]*)</th><td data-head="Bias, SUVR"><span>([^<]*)', text)
    assert rows == [("frontal", "+2.000"), ("region 2", "+3.000")]


def test_a_run_from_before_these_figures_still_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "prepared").rename(tmp_path / "moved")  # pictures take time
    file = run / "evaluation" / "summary.json"
    content = json.loads(file.read_text())
    del content["agreement"], content["burden"]
    new = ("intensity_distance", "top_recall")
    content["results"] = [line for line in content["results"] if line["metric"] not in new]
    file.write_text(json.dumps(content))
    (run / "evaluation" / "burden.tsv").unlink()
    page = write_report(run).read_text(encoding="utf-8")
    assert "GANBERT has a higher PSNR than the mean" in page
    for part in ("Wasserstein", "Recall", "Regions and burden"):
        assert part not in page


def test_a_torn_burden_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "evaluation" / "burden.tsv").write_text("subject\n01\n")
    with pytest.raises(DatasetError, match=r"burden\.tsv: .*ganbert evaluate"):
        write_report(run)
    file = run / "evaluation" / "summary.json"
    content = json.loads(file.read_text())
    del content["burden"]["agreement"]
    file.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"summary\.json: .*ganbert evaluate"):
        write_report(run)


def test_a_subject_without_a_burden_is_not_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "prepared").rename(tmp_path / "moved")  # pictures take time
    file = run / "evaluation" / "burden.tsv"
    lines = [x.split("\t") for x in file.read_text().splitlines()]
    for values in lines[1:]:
        values[-1] = "n/a" if values[0] == "01" else values[-1]
    file.write_text("\n".join("\t".join(x) for x in lines) + "\n")
    assert "against the real PET, 3 subjects" in write_report(run).read_text(encoding="utf-8")


def test_page_is_self_contained(page: str) -> None:
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert not re.search(r"url\((?!#)", page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert len(page) < 6e6


def test_ids_are_unique_and_images_described(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all(re.search(r'alt="[^"]{10,}"', tag) for tag in re.findall(r"<img[^>]*>", page))


def test_page_shows_nothing_of_a_subject_but_its_label(page: str) -> None:
    assert "sub-01" in page
    assert "never shown" not in page


def test_run_without_evaluation_reports_its_training(tmp_path: Path) -> None:
    run = make_run(tmp_path, evaluated=False)
    page = write_report(run).read_text(encoding="utf-8")
    assert "Not evaluated yet" in page
    assert "ganbert evaluate RUN" in page
    assert "Reconstruction" in page
    assert not list(run.glob("*.tmp"))


def test_run_whose_cohort_is_gone_keeps_its_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    moved = (tmp_path / "prepared").rename(tmp_path / "moved")
    page = write_report(run).read_text(encoding="utf-8")
    assert "GANBERT has a higher PSNR than the mean" in page
    assert "Missing: no images" in page
    assert str(tmp_path) not in page
    assert "Missing:" not in write_report(run, data=moved).read_text(encoding="utf-8")


def test_page_shows_no_path_of_this_machine(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path)).read_text(encoding="utf-8")
    assert str(tmp_path) not in page
    assert "--data PREPARED --output RUN" in page


def test_a_page_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    run = make_run(tmp_path, evaluated=False)
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OutputError, match=r"report\.html: .*Permission denied"):
        write_report(run)


def test_run_with_an_empty_log_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, evaluated=False)
    (run / "log.jsonl").write_text("")
    assert "Missing: no training log" in write_report(run).read_text(encoding="utf-8")
    assert math.isnan(read_log(run).last("loss_l1"))


@pytest.mark.parametrize("values", [(0.25261, 0.25279), (0.2, 1.2), (-350.2, 1200.0)])
def test_the_numbers_below_a_strip_have_room_side_by_side(values: tuple[float, float]) -> None:
    groups = {name: np.array([value]) for name, value in zip("ab", values, strict=True)}
    svg = str(draw_strip(groups, "SUVR", key="strip"))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    numbers = [text for text in texts if text[-1].isdigit()]
    width = float(re.search(r'viewBox="0 0 (\S+)', svg)[1])
    assert len(numbers) >= 2
    # A digit takes two thirds of the font's 9 points.
    assert 6 * sum(len(number) + 1 for number in numbers) < 0.9 * width

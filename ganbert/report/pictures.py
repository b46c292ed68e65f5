"""Which subjects the report shows, and the pictures made from their images.

The best, the median and the worst held-out subject by PSNR, so that nobody has to wonder how they
were picked; the histograms take all held-out subjects.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ganbert.data.direct import read_image
from ganbert.data.index import Index, Row, load_index
from ganbert.data.nifti import read_volume
from ganbert.data.volume import Volume
from ganbert.errors import DatasetError
from ganbert.report.charts import (
    FOURTH,
    SECOND,
    THIRD,
    Array,
    Drawing,
    Series,
    draw_by_subject,
    draw_histogram,
)
from ganbert.report.panels import CaseFigures, choose_scales, draw_case
from ganbert.report.run import MetricRow, find_prediction
from ganbert.report.scores import (
    BASELINE,
    METRIC_HEADS,
    OURS,
    format_number,
    name_methods,
    name_metric,
)

Image = tuple[str, str | None, str]


@dataclass(frozen=True)
class Case:
    """One shown subject.

    Attributes
    ----------
    rank : "best", "median" or "worst"
    """

    label: str
    rank: str
    numbers: str
    figures: CaseFigures


@dataclass(frozen=True)
class Pictures:
    """All pictures of held-out subjects.

    Attributes
    ----------
    frames : name of each PET frame
    histograms : one per frame
    """

    frames: list[str]
    cases: list[Case]
    histograms: list[Drawing]
    unit: str


def image_label(image: Image) -> str:
    """Return the BIDS label of an image: `sub-01` or `sub-01 ses-02`.

    >>> image_label(("01", "02", "FDG")), image_label(("01", None, "FDG"))
    ('sub-01 ses-02', 'sub-01')
    """
    subject, session, _ = image
    return f"sub-{subject} ses-{session}" if session else f"sub-{subject}"


def choose_images(rows: list[MetricRow]) -> list[tuple[str, MetricRow]]:
    """Choose the best, median and worst image by the run's PSNR; fewer if there are fewer."""
    ours = sorted((row for row in rows if row.method == OURS), key=lambda row: -row.values["psnr"])
    if not ours:
        return []
    places = {"best": 0, "median": len(ours) // 2, "worst": len(ours) - 1}
    if len(ours) < 3:
        del places["median"]
    if len(ours) < 2:
        return [("only", ours[0])]
    return [(rank, ours[place]) for rank, place in places.items()]


def draw_pictures(run: Path, data: Path, rows: list[MetricRow]) -> Pictures:
    """Read the images of the evaluated subjects and draw them.

    Parameters
    ----------
    data : the prepared folder
    rows : metrics of one mask and reference

    Raises
    ------
    DatasetError, ImageError
        If the prepared folder or a prediction is missing or torn.
    """
    index = load_index(data)
    chosen = choose_images(rows)
    pets = {row.image: _read_pets(run, data, index, row.image)
            for row in rows if row.method == OURS}  # fmt: skip
    shown = [pets[row.image] for _, row in chosen]
    scales = choose_scales([real for real, _ in shown], [fake for _, fake in shown])
    cases = []
    for rank, row in chosen:
        real, fake = pets[row.image]
        mri = read_image(data, _find_row(index, row.image).mri)
        figures = draw_case(mri, real, fake, scales)
        cases.append(Case(image_label(row.image), rank, _numbers(row, real.unit), figures))
    frames = _frame_names(_find_row(index, chosen[0][1].image))
    return Pictures(frames, cases, _histograms(list(pets.values()), frames), shown[0][0].unit)


def _find_row(index: Index, image: Image) -> Row:
    for row in index.rows:
        if (row.subject, row.session, row.tracer) == image:
            return row
    raise DatasetError(
        "prepared folder",
        expected=image_label(image),
        found="an index without it",
        remedy="evaluate again with the prepared folder of this run",
    )


def _read_pets(run: Path, data: Path, index: Index, image: Image) -> tuple[Volume, Volume]:
    row = _find_row(index, image)
    real = read_image(data, row.pet, row.unit)
    return real, read_volume(find_prediction(run, row), row.unit)


def _numbers(row: MetricRow, unit: str) -> str:
    values = row.values
    return (
        f"PSNR {format_number(values['psnr'], 2)} dB, SSIM {format_number(values['ssim'], 3)}, "
        f"RMSE {format_number(values['rmse'], 4)} {unit}"
    )


def _frame_names(row: Row) -> list[str]:
    return [
        f"Frame {number}: {start / 60:g}\u2013{(start + duration) / 60:g} min"
        for number, (start, duration) in enumerate(
            zip(row.frame_start_s, row.frame_duration_s, strict=True), start=1
        )
    ]


def _histograms(pets: list[tuple[Volume, Volume]], frames: list[str]) -> list[Drawing]:
    unit, drawn, errors = pets[0][0].unit, [], []
    for t, name in enumerate(frames):
        real = np.concatenate([pet.array[t].ravel() for pet, _ in pets]).astype(np.float64)
        fake = np.concatenate([pet.array[t].ravel() for _, pet in pets]).astype(np.float64)
        errors.append(Series(f"frame {t + 1}", fake - real, (THIRD, FOURTH)[t % 2]))
        text = (
            f"Histogram on a log count axis, {name}: real PET from {real.min():.3g} to "
            f"{real.max():.3g} {unit}, synthesised PET from {fake.min():.3g} to {fake.max():.3g}"
        )
        parts = (Series("real PET", real), Series("synthesised PET", fake, SECOND))
        drawn.append(Drawing(name, text, draw_histogram(parts, unit, key=f"histogram{t}")))
    title = "Error: synthesised minus real"
    text = f"{title}, histogram on a log count axis; " + "; ".join(
        f"{part.label} has a mean of {part.values.mean():.3g} {unit}" for part in errors
    )
    return [*drawn, Drawing(title, text, draw_histogram(errors, unit, key="histogram-error"))]


def draw_subjects(rows: list[MetricRow], unit: str, ours: str) -> list[Drawing]:
    """Draw the run's method and the mean of the training PETs, by subject, for three metrics.

    Parameters
    ----------
    ours : name of the run's method
    """
    by_image = {
        method: {row.image: row.values for row in rows if row.method == method}
        for method in (OURS, BASELINE)
    }
    images = [image for image in by_image[OURS] if image in by_image[BASELINE]]
    if not images:
        return []
    images.sort(key=lambda image: -by_image[OURS][image]["psnr"])
    names, drawn = [image_label(image) for image in images], []
    method_names = name_methods(ours)
    for metric in ("psnr", "ssim", "rmse"):
        values = {
            method_names[method]: _finite([by_image[method][image][metric] for image in images])
            for method in by_image
        }
        (heading, _), direction = name_metric(metric, unit), METRIC_HEADS[metric][3]
        own, baseline = values.values()
        wins = int(np.sum(direction * (own - baseline) > 0))
        title = f"{metric.upper()} by subject ({'higher' if direction > 0 else 'lower'} is better)"
        text = f"{title}: {ours} is better than the mean of the training PETs in {wins} " \
               f"of {len(images)} images"  # fmt: skip
        svg = draw_by_subject(names, values, heading, key=f"subjects-{metric}")
        drawn.append(Drawing(title, text, svg))
    return drawn


def _finite(values: list[float]) -> Array:
    """PSNR of equal images is infinite, which has no place on an axis."""
    array = np.array(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)

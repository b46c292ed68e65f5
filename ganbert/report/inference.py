"""Pages about what `infer` has made: one for each subject, and one for the group.

They read the derivative dataset alone (pictures, sidecars, images), so that they can be made again
without the model and the T1w. A subject's page is one file that loads nothing; the group's shows
the pictures that lie beside it.
"""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ganbert import __version__
from ganbert.atomic import make_folder, replacing, write_text
from ganbert.data.nifti import read_volume
from ganbert.errors import DatasetError
from ganbert.report.charts import Drawing, Series, draw_histogram, draw_strip
from ganbert.report.overlay import Layers
from ganbert.report.page import TEMPLATES
from ganbert.report.panels import draw_color_bar

FIGURES = "figures"
_COLORS = ("#040404", "#050505")


@dataclass(frozen=True)
class Made:
    """One finished image of a derivative dataset.

    Attributes
    ----------
    label : `sub-01` or `sub-01 ses-a`
    image : path of the PET
    sidecar : content of its JSON
    """

    label: str
    image: Path
    sidecar: Mapping[str, Any]

    @property
    def subject(self) -> str:
        """`sub-01`."""
        return self.label.split()[0]

    @property
    def quality(self) -> Mapping[str, Any]:
        """Flags and measures; empty in the output of earlier versions."""
        found = self.sidecar.get("GanbertQuality")
        return found if isinstance(found, dict) else {}

    @property
    def flags(self) -> list[Mapping[str, str]]:
        """Flags, warnings first."""
        return list(self.quality.get("Flags", []))

    @property
    def num_warnings(self) -> int:
        """Number of flags that are warnings."""
        return sum(flag.get("Severity") == "warning" for flag in self.flags)

    def frames(self) -> tuple[str, ...]:
        """Names of the frames: `Frame 1: 50-55 min`."""
        return frame_names(self.sidecar["FrameTimesStart"], self.sidecar["FrameDuration"])


def frame_names(start_s: Sequence[float], duration_s: Sequence[float]) -> tuple[str, ...]:
    """Name frames for people.

    Parameters
    ----------
    start_s, duration_s : s after injection
    """
    return tuple(
        f"Frame {number}: {start / 60:g}\u2013{(start + duration) / 60:g} min"
        for number, (start, duration) in enumerate(zip(start_s, duration_s, strict=True), start=1)
    )


def figure_path(image: Path, key: str) -> Path:
    """Return where a picture of an image lies: `sub-01/figures/..._desc-KEY_pet.jpg`."""
    folders = image.parent.parts
    subject = next(part for part in reversed(folders) if part.startswith("sub-"))
    top = Path(*folders[: len(folders) - folders[::-1].index(subject)])
    name = image.name.removesuffix(".nii.gz").replace("_desc-synth_", f"_desc-{key}_")
    return top / FIGURES / f"{name}.jpg"


def save_figures(image: Path, layers: Layers) -> None:
    """Write the pictures of an image, and what is written on them, beside its subject's others.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    about = []
    for layer in layers.layers:
        file = figure_path(image, layer.key)
        make_folder(file.parent)
        with replacing(file) as temporary:
            temporary.write_bytes(layer.jpeg)
        scale = layer.scale
        about.append(
            {
                "key": layer.key,
                "title": layer.title,
                "bar": draw_color_bar(scale) if scale else None,
                "ticks": scale.ticks if scale else None,
                "unit": scale.unit if scale else None,
            }
        )
    letters = [vars(label) for label in layers.labels]
    content = {"layers": about, "labels": letters, "names": [vars(n) for n in layers.names],
               "point_mm": layers.point_mm, "aspect": layers.aspect}  # fmt: skip
    write_text(_about_path(image), json.dumps(content) + "\n")


def _about_path(image: Path) -> Path:
    return figure_path(image, "pictures").with_suffix(".json")


def find_made(out: Path, subject: str = "sub-*") -> list[Made]:
    """Find the finished images of a derivative dataset, by subject and session.

    Parameters
    ----------
    subject : `sub-01`; by default all of them

    Raises
    ------
    DatasetError
        If a sidecar cannot be read.
    """
    made = []
    for sidecar in sorted(out.glob(f"{subject}/**/pet/*_desc-synth_pet.json")):
        image = sidecar.with_suffix(".nii.gz")
        if not image.is_file():
            continue
        try:
            content = json.loads(sidecar.read_text(encoding="utf-8"))
            label = " ".join(p for p in image.name.split("_") if p.startswith(("sub-", "ses-")))
            made.append(Made(label, image, dict(content)))
        except (OSError, ValueError, TypeError) as error:
            raise DatasetError(
                sidecar,
                expected="the sidecar of a synthetic PET",
                found="one that cannot be read",
                remedy="remove it, and infer that subject again",
            ) from error
    return made


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_subject(out: Path, subject: str, facts: Mapping[str, str]) -> Path:
    """Write `OUT/sub-LABEL.html` about all finished images of a subject.

    Parameters
    ----------
    out : the derivative dataset
    subject : `sub-01`
    facts : of model and run, for the table at the end

    Raises
    ------
    DatasetError, ImageError
        If an image or its sidecar cannot be read.
    OutputError
        If the page cannot be written.
    """
    images = find_made(out, subject)
    text = _environment().get_template("participant.html.j2").render(
        subject=subject,
        images=[_describe(made, number) for number, made in enumerate(images)],
        num_warnings=sum(made.num_warnings for made in images),
        tracer=images[0].sidecar.get("TracerName", "") if images else "",
        facts=list(facts.items()),
        version=__version__,
    )  # fmt: skip
    file = out / f"{subject}.html"
    write_text(file, text)
    return file


def _describe(made: Made, number: int) -> dict[str, Any]:
    measures = made.quality.get("Measures", {})
    return {
        "label": made.label,
        "name": made.image.name,
        "source": ", ".join(made.sidecar.get("Sources", [])),
        "flags": made.flags,
        "measures": [(name, f"{value:.4g}") for name, value in measures.items()],
        "pictures": _read_pictures(made.image),
        "histogram": _histogram(made, number),
    }


def _read_pictures(image: Path) -> dict[str, Any] | None:
    """Pictures with their captions; None where there are none."""
    try:
        content = json.loads(_about_path(image).read_text(encoding="utf-8"))
        for layer in content["layers"]:
            data = figure_path(image, layer["key"]).read_bytes()
            layer["uri"] = "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(content)


def _histogram(made: Made, number: int) -> Drawing:
    unit = str(made.sidecar.get("Units", ""))
    pet = read_volume(made.image, unit or "arbitrary").array.astype(np.float64)
    parts = [
        Series(name, frame.ravel(), _COLORS[place % 2])
        for place, (name, frame) in enumerate(zip(made.frames(), pet, strict=True))
    ]
    text = "; ".join(
        f"{part.label}: {part.values.min():.3g} to {part.values.max():.3g} {unit}, "
        f"median {np.median(part.values):.3g}"
        for part in parts
    )
    title = "Intensities of all voxels"
    svg = draw_histogram(parts, unit, key=f"histogram{number}")
    return Drawing(title, f"Histogram on a log count axis. {text}", svg)


def write_group(
    out: Path,
    made: Sequence[Made],
    regions: Sequence[Mapping[str, Any]],
    facts: Mapping[str, str],
    tables: Sequence[str],
    remarks: Sequence[str] = (),
) -> Path:
    """Write `OUT/group_pet.html`: every image with its flags, and the spread of measures.

    Parameters
    ----------
    made : finished images
    regions : lines of the table of regions; may be empty
    facts : of model and run
    tables : names of the files beside it
    remarks : which images and labels have no regional values, and why

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    rows = [
        {
            "label": each.label,
            "page": f"{each.subject}.html",
            "picture": _relative(out, figure_path(each.image, "frame2")),
            "flags": Counter((flag["Severity"], flag["Name"]) for flag in each.flags),
            "num_warnings": each.num_warnings,
        }
        for each in sorted(made, key=lambda each: (-each.num_warnings, each.label))
    ]
    text = _environment().get_template("group.html.j2").render(
        rows=rows,
        num_flagged=sum(each.num_warnings > 0 for each in made),
        charts=[*_measure_charts(made), *_region_charts(regions)],
        has_regions=bool(regions),
        facts=list(facts.items()),
        tables=tables,
        remarks=remarks,
        version=__version__,
    )  # fmt: skip
    file = out / "group_pet.html"
    write_text(file, text)
    return file


def _relative(out: Path, file: Path) -> str | None:
    return file.relative_to(out).as_posix() if file.is_file() else None


def _measure_charts(made: Sequence[Made]) -> list[Drawing]:
    unit = str(made[0].sidecar.get("Units", "")) if made else ""
    charts = []
    for name, title, label in (
        ("pet_mean", "Mean of the PET's field of view", unit),
        ("pet_p99", "99th percentile of the PET", unit),
        ("coverage", "PET's field of view inside the T1w", "share"),
    ):
        values = [(m.label, m.quality.get("Measures", {}).get(name)) for m in made]
        known = [(label_, float(value)) for label_, value in values if value is not None]
        if known:
            charts.append(_strip(title, {"all images": known}, label, key=name))
    return charts


def _region_charts(regions: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    """The last frame of every region, one dot an image."""
    if not regions:
        return []
    last = max(int(line["frame"]) for line in regions)
    groups: dict[str, list[tuple[str, float]]] = {}
    for line in regions:
        if int(line["frame"]) == last and np.isfinite(line["mean"]):
            groups.setdefault(str(line["region"]), []).append((line["subject"], line["mean"]))
    unit = str(regions[0]["unit"])
    return [_strip(f"Regions, frame {last}", groups, unit, key="regions")] if groups else []


def _strip(
    title: str, groups: Mapping[str, Sequence[tuple[str, float]]], unit: str, *, key: str
) -> Drawing:
    values = {name: np.array([value for _, value in pairs]) for name, pairs in groups.items()}
    text = "; ".join(
        f"{name}: {array.min():.3g} to {array.max():.3g}, median {np.median(array):.3g} {unit}"
        for name, array in values.items()
    )
    return Drawing(title, f"{title}, one dot an image. {text}", draw_strip(values, unit, key=key))

"""Names, sidecars and descriptions of what the software writes as a BIDS derivative.

A synthetic PET has no scanner, no injection and no reconstruction, but BIDS demands the keys that
describe them. Each is answered with what is literally true (no radioactivity was injected: 0 MBq;
no filter was applied: "none") or with "n/a" where the standard allows it, so that no later tool can
take the image for an acquired one and none reads an invented number.
"""

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from ganbert import __version__
from ganbert.atomic import write_text
from ganbert.config import ModelCard
from ganbert.tracers import get_tracer

BIDS_VERSION = "1.10.0"
DESCRIPTION_NAME = "dataset_description.json"
PIPELINE_NAME = "ganbert"
RAW_NAME = "raw"  # of the input dataset, in BIDS URIs
DESC_PET, DESC_STD = "synth", "synthstd"
QUALITY_KEY = "GanbertQuality"
# A folder below another one is not found with a slash behind it.
LOCK_PREFIX = ".lock-"
FILE_NAMES = ("sub-*.html", "figures", "logs/", "group_*", f"{LOCK_PREFIX}*")
MODEL_KEY = "GanbertModel"

_README = """\
SYNTHETIC positron emission tomography (PET)
============================================

No image in this folder was acquired with a scanner. Each was computed from one T1-weighted MRI by
ganbert {version}, which has learnt from pairs of MRI and {tracer} ({long_name}) PET what such a
PET tends to look like. What the MRI does not show, such an image cannot show either.

For research only. Not for diagnosis, and not evidence of {target} in any person.

Images: sub-*/[ses-*/]pet/*_desc-synth_pet.nii.gz, unit {unit}, aligned with the T1w they come from.
Where it was asked for, how far the network's own answers differ when the T1w is moved and its
contrast is bent a little: *_desc-synthstd_pet.nii.gz, one standard deviation, the same unit. It is
a small part of the error, and no error bar.
What to beware of in each image: GanbertQuality in its JSON, and sub-*.html. Text to cite:
logs/CITATION.md.
"""


def pet_path(subject: str, session: str | None, tracer: str, desc: str = DESC_PET) -> PurePosixPath:
    """Return the name of a synthesised PET, relative to the derivative dataset.

    Parameters
    ----------
    subject, session : BIDS labels without `sub-` and `ses-`; a session may be absent
    tracer : short name, a key of `ganbert.tracers.TRACERS`
    desc : `DESC_PET`, or `DESC_STD` for its map of uncertainty: BIDS has no entity for a statistic
        of an image

    Examples
    --------
    >>> str(pet_path("01", None, "FDG"))
    'sub-01/pet/sub-01_trc-18FFDG_space-T1w_desc-synth_pet.nii.gz'
    """
    folders = [f"sub-{subject}", *([f"ses-{session}"] if session else [])]
    entities = [*folders, f"trc-{get_tracer(tracer).bids_label}", "space-T1w", f"desc-{desc}"]
    return PurePosixPath(*folders, "pet", "_".join([*entities, "pet.nii.gz"]))


def sidecar_path(image: PurePosixPath) -> PurePosixPath:
    """Return the name of the JSON beside an image."""
    return image.with_name(image.name.removesuffix(".nii.gz") + ".json")


def bids_uri(path: PurePosixPath) -> str:
    """Return the BIDS URI of a file of the input dataset.

    >>> bids_uri(PurePosixPath("sub-01/anat/sub-01_T1w.nii.gz"))
    'bids:raw:sub-01/anat/sub-01_T1w.nii.gz'
    """
    return f"bids:{RAW_NAME}:{path}"


def pet_sidecar(
    card: ModelCard, t1w: PurePosixPath, quality: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the sidecar of a synthesised PET.

    Parameters
    ----------
    card : of the model that made it
    t1w : the MRI it was made from, relative to the input dataset
    quality : flags and measures of this image, as `quality.Quality.as_json`

    Source
    ------
    BIDS 1.10, "Positron Emission Tomography" and "Common data types and metadata" of derivatives.
    """
    tracer = get_tracer(card.tracer)
    return {
        "Description": (
            f"SYNTHETIC {tracer.name} ({tracer.long_name}) PET, computed from a T1-weighted MRI. "
            "It was not acquired: no tracer was injected and no scan was made. Not for diagnosis."
        ),
        "Sources": [bids_uri(t1w)],
        "SpatialReference": bids_uri(t1w),
        "SkullStripped": False,
        "Units": card.unit,
        **_time(card),
        **_radiochemistry(tracer.long_name, tracer.radionuclide),
        **_absent_scan(),
        **({QUALITY_KEY: quality} if quality is not None else {}),
    }


def std_sidecar(card: ModelCard, t1w: PurePosixPath, num_passes: int) -> dict[str, Any]:
    """Return the sidecar of the map of uncertainty of a synthesised PET.

    Parameters
    ----------
    num_passes : through the network with a changed T1w, besides the plain one
    """
    tracer = get_tracer(card.tracer)
    return pet_sidecar(card, t1w) | {
        "Description": (
            f"Uncertainty of a SYNTHETIC {tracer.name} ({tracer.long_name}) PET, which was not "
            f"acquired: voxelwise standard deviation over {num_passes + 1} answers of the network "
            "to the T1-weighted MRI, plain and moved and bent in contrast (test-time "
            "augmentation). What the network has learnt wrongly is not in it. Not for diagnosis."
        )
    }


def _time(card: ModelCard) -> dict[str, Any]:
    """The frames that the model has learnt, on a clock that starts with the (absent) injection."""
    return {
        "TimeZero": "00:00:00",
        "InjectionStart": 0,
        "ScanStart": card.frame_start_s[0],
        "FrameTimesStart": list(card.frame_start_s),
        "FrameDuration": list(card.frame_duration_s),
        # Nothing has decayed, so nothing is left to correct: `true` keeps a later tool from it.
        "ImageDecayCorrected": True,
        "ImageDecayCorrectionTime": 0,
    }


def _radiochemistry(long_name: str, radionuclide: str) -> dict[str, Any]:
    return {
        "TracerName": long_name,
        "TracerRadionuclide": radionuclide,
        # BIDS allows no "n/a" here, and 0 is the truth.
        "InjectedRadioactivity": 0,
        "InjectedRadioactivityUnits": "MBq",
        "InjectedMass": "n/a",
        "InjectedMassUnits": "n/a",
        "SpecificRadioactivity": "n/a",
        "SpecificRadioactivityUnits": "n/a",
        "ModeOfAdministration": "n/a",
    }


def _absent_scan() -> dict[str, Any]:
    return {
        "Manufacturer": "n/a",
        "ManufacturersModelName": "n/a",
        "AcquisitionMode": "n/a",
        "ReconMethodName": "n/a",
        "ReconMethodParameterLabels": ["none"],
        "ReconFilterType": "none",
        "AttenuationCorrection": "none",
    }


def dataset_description(card: ModelCard, bids_dir: Path, out_dir: Path) -> dict[str, Any]:
    """Return `dataset_description.json` of a derivative dataset.

    The link to the input is relative, so that it outlives a move of both and shows no home folder.
    """
    tracer = get_tracer(card.tracer)
    link = PurePosixPath(os.path.relpath(bids_dir.resolve(), out_dir.resolve()))
    return {
        "Name": f"Synthetic {tracer.name} PET from T1w MRI",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": PIPELINE_NAME,
                "Version": __version__,
                "Description": "PET synthesised from T1w MRI; no image here was acquired",
            }
        ],
        "DatasetLinks": {RAW_NAME: quote(str(link))},
        MODEL_KEY: {
            "Tracer": tracer.name,
            "WeightsSHA256": card.weights_sha256,
            "TrainingSteps": card.num_steps,
            "TrainingRows": card.num_training_rows,
            "TrainingIndexSHA256": card.index_sha256,
            "IntensityRatio": card.intensity_ratio,
            "DataRange": list(card.data_range),
        },
    }


def readme(card: ModelCard) -> str:
    """Return the README of a derivative dataset: what it is, and what it is not for."""
    tracer = get_tracer(card.tracer)
    return _README.format(
        version=__version__,
        tracer=tracer.name,
        long_name=tracer.long_name,
        target=tracer.target,
        unit=card.unit,
    )


def model_facts(description: dict[str, Any]) -> dict[str, str]:
    """Return what a derivative dataset says of its model, for people; none where it says nothing.

    Parameters
    ----------
    description : content of `dataset_description.json`
    """
    model = description.get(MODEL_KEY)
    names = {
        "Tracer": "Tracer",
        "TrainingSteps": "Training steps",
        "TrainingRows": "Training pairs",
        "IntensityRatio": "Intensity ratio",
        "WeightsSHA256": "Weights, SHA-256",
        "TrainingIndexSHA256": "Training index, SHA-256",
    }
    found = model if isinstance(model, dict) else {}
    return {text: str(found[key]) for key, text in names.items() if key in found}


def is_continuation(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether an output folder comes from this software, this model and this input dataset."""
    keys = ("DatasetLinks", MODEL_KEY)
    generators = found.get("GeneratedBy")
    first = generators[0] if isinstance(generators, list) and generators else {}
    named = isinstance(first, dict) and first.get("Name") == PIPELINE_NAME
    return named and all(found.get(key) == wanted[key] for key in keys)


def ignore_file() -> str:
    """Return `.bidsignore` of a derivative dataset: reports, logs, tables of the group, locks."""
    return "".join(f"{name}\n" for name in FILE_NAMES)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")

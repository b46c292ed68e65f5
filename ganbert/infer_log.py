"""What `infer` leaves in `logs/` of its output: what was run, what failed and why, what to cite.

Nothing is written before there is an output folder: a command that could not do anything leaves
nothing behind. Of a subject the log holds its BIDS labels, and paths of its images.
"""

import datetime
import platform
import traceback
from importlib.metadata import version
from pathlib import Path

from ganbert import __version__
from ganbert.atomic import make_folder, output_error, write_text
from ganbert.config import ModelCard
from ganbert.tracers import get_tracer

LOGS = "logs"
_VERSIONED = ("torch", "nibabel", "numpy", "scipy")

_CITATION = """\
Results in this dataset were made with *GANBERT* {version}. The following text may be copied into a
manuscript; it is in the public domain.

> Synthetic {tracer} ({long_name}) PET images were computed from T1-weighted MRI with *GANBERT*
> {version}, an open implementation of the method of Shin et al. (2020). No tracer was injected and
> no PET was acquired. Each T1w was centred on the head, resampled to a grid of
> {mri_grid} voxels of {mri_mm} mm and normalised by its own mean and standard deviation. A
> U-Net-like 3D generator, trained for {steps} steps on {rows} pairs of MRI and PET (weights with
> SHA-256 {weights}), gave {frames} frames on a grid of {pet_grid} voxels of {pet_mm} mm, in
> {unit}.{passes}
> GANBERT uses PyTorch {torch} (Paszke et al., 2019) and NiBabel {nibabel} (Brett et al.); input and
> output follow BIDS (Gorgolewski et al., 2016).

A reader must be able to tell that these are no measurements: say so in every table and figure.

### References

- Shin H-C, Ihsani A, Mandava S, Sreenivas ST, Forster C, Cha J, and the Alzheimer's Disease
  Neuroimaging Initiative (2020). GANBERT: Generative Adversarial Networks with Bidirectional
  Encoder Representations from Transformers for MRI to PET synthesis. arXiv:2008.04393.
- Gorgolewski KJ, et al. (2016). The brain imaging data structure, a format for organizing and
  describing outputs of neuroimaging experiments. Scientific Data 3:160044.
- Paszke A, et al. (2019). PyTorch: an imperative style, high-performance deep learning library.
  Advances in Neural Information Processing Systems 32.
- Brett M, et al. NiBabel: access a cacophony of neuro-imaging file formats.
{more}"""
_PASSES = """
> The standard deviation over {answers} answers of the network, to the plain T1w and to {num} that
> were moved by a voxel and bent in contrast, is given as a map of uncertainty (test-time
> augmentation; Wang et al., 2019)."""
_PASSES_REFERENCE = """\
- Wang G, et al. (2019). Aleatoric uncertainty estimation with test-time augmentation for medical
  image segmentation with convolutional neural networks. Neurocomputing 338:34-45.
"""


def citation(card: ModelCard, passes: int) -> str:
    """Return the text that users may copy into a manuscript, with what was really done.

    Parameters
    ----------
    passes : augmented passes for the map of uncertainty
    """
    tracer = get_tracer(card.tracer)
    said = _PASSES.format(answers=passes + 1, num=passes) if passes else ""
    return _CITATION.format(
        version=__version__,
        tracer=tracer.name,
        long_name=tracer.long_name,
        mri_grid="x".join(map(str, card.mri_grid.shape)),
        mri_mm=" x ".join(f"{mm:g}" for mm in card.mri_grid.spacing_mm),
        pet_grid="x".join(map(str, card.pet_grid.shape)),
        pet_mm=" x ".join(f"{mm:g}" for mm in card.pet_grid.spacing_mm),
        steps=card.num_steps,
        rows=card.num_training_rows,
        weights=card.weights_sha256[:12],
        frames=len(card.frame_start_s),
        unit=card.unit,
        passes=said,
        torch=version("torch"),
        nibabel=version("nibabel"),
        more=_PASSES_REFERENCE if passes else "",
    )


class RunLog:
    """The log of one call; lines wait in memory until the output folder is there.

    Parameters
    ----------
    out : the output folder
    facts : what the call was, a line each
    """

    def __init__(self, out: Path, facts: dict[str, str]) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self._folder = out / LOGS
        self._stamp = now.strftime("%Y%m%dT%H%M%S%fZ")
        self._waiting: list[str] = []
        self._is_open = False
        versions = {name: version(name) for name in _VERSIONED} | {
            "python": platform.python_version()
        }
        self.add(f"ganbert {__version__} infer")
        for name, value in (facts | versions).items():
            self.add(f"{name}: {value}")

    @property
    def is_open(self) -> bool:
        """Whether lines are written at once."""
        return self._is_open

    @property
    def file(self) -> Path:
        """Where the log is, once it is open."""
        return self._folder / f"infer-{self._stamp}.log"

    def open(self) -> None:
        """Write what has waited, and from now on every line at once.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        make_folder(self._folder)
        self._is_open = True
        waiting, self._waiting = self._waiting, []
        self._write(waiting)

    def add(self, line: str) -> None:
        """Add a line, with the time.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._write([f"{now} {' '.join(line.split())}"])

    def _write(self, lines: list[str]) -> None:
        if not self._is_open:
            self._waiting += lines
            return
        try:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            raise output_error(self.file, error) from error

    def crash(self, stem: str, error: BaseException) -> Path:
        """Write the traceback of what went wrong with one image, into a file of its own.

        Parameters
        ----------
        stem : BIDS labels of the image

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        make_folder(self._folder)
        file = self._folder / f"crash-{stem}-{self._stamp}.txt"
        write_text(file, "".join(traceback.format_exception(error)))
        return file

"""A synthetic PET over its T1w in three planes, as pictures that are files.

Axial, coronal and sagittal plane stand above each other, all on one scale, sampled in world
millimetres as in `panels.py`: what looks aligned is aligned.
"""

import io
import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ganbert.data.volume import Volume
from ganbert.report.panels import (
    COLORMAPS,
    GAP_MM,
    PIXELS_PER_MM,
    PLANES,
    Array,
    Label,
    Scale,
    View,
    choose_view,
    name_planes,
    panel_width_mm,
    place_labels,
    round_up,
    sample_plane,
)

MARGIN_MM = 14.0  # of the T1w around the field of view of the PET
UNCERTAINTY_KEY = "std"
_WHITEST = 255.0
_OPACITY = 0.75
# Uptake below this share of the scale lets the T1w through.
_FAINT = 0.35


@dataclass(frozen=True)
class Layer:
    """One column of a subject's pictures.

    Attributes
    ----------
    key : for names of files
    scale : of the colours over the T1w; None: the T1w alone
    jpeg : the picture
    """

    key: str
    title: str
    scale: Scale | None
    jpeg: bytes


@dataclass(frozen=True)
class Layers:
    """All pictures of one image, and what is written on them.

    Attributes
    ----------
    aspect : width over height
    """

    layers: tuple[Layer, ...]
    labels: tuple[Label, ...]
    names: tuple[Label, ...]
    point_mm: tuple[float, float, float]
    aspect: float


def draw_layers(
    mri: Volume,
    pet: Volume,
    uncertainty: Volume | None,
    frames: tuple[str, ...],
    data_range: tuple[float, float],
) -> Layers:
    """Draw the T1w, each frame of the PET over it, and its uncertainty in the last frame.

    Parameters
    ----------
    mri : (1, D, H, W), 0..255, as the network saw it
    pet, uncertainty : (T, D, H, W), one grid and unit
    frames : name of each frame
    data_range : declared range of the PET, (low, high): one scale for all subjects
    """
    view = _widen(choose_view(pet))
    grey = [_grey(mri, view, plane) for plane in range(len(PLANES))]
    scale = Scale("pet", 0.0, data_range[1], pet.unit)
    layers = [Layer("t1w", "T1w MRI, as the network saw it", None, _picture(grey))]
    for frame, name in enumerate(frames):
        layers.append(_over(grey, pet, frame, view, f"frame{frame + 1}", name, scale))
    if uncertainty is not None:
        last = len(frames) - 1
        high = round_up(float(np.percentile(uncertainty.array[last], 99.5)))
        std_scale = Scale("pet", 0.0, high, pet.unit)
        title = f"Uncertainty, frame {last + 1}"
        layers.append(_over(grey, uncertainty, last, view, UNCERTAINTY_KEY, title, std_scale))
    height = sum(view.high_mm[up] - view.low_mm[up] for _, _, up, _ in PLANES)
    height += GAP_MM * (len(PLANES) - 1)
    return Layers(
        tuple(layers),
        tuple(place_labels(view)),
        tuple(name_planes(view)),
        view.point_mm,
        panel_width_mm(view) / height,
    )


def _widen(view: View) -> View:
    low, high = (
        tuple(float(value) + sign * MARGIN_MM for value in corner)
        for corner, sign in ((view.low_mm, -1), (view.high_mm, 1))
    )
    return View(view.point_mm, low, high)  # type: ignore[arg-type]


def _grey(mri: Volume, view: View, plane: int) -> Array:
    """One plane of the T1w as (H, W, 3) in 0..1."""
    level = np.clip(sample_plane(mri, 0, view, plane, order=1) / _WHITEST, 0.0, 1.0)
    colours: Array = COLORMAPS["mri"](level)[..., :3]
    return colours


def _over(
    grey: list[Array], pet: Volume, frame: int, view: View, key: str, title: str, scale: Scale
) -> Layer:
    planes = []
    for plane, below in enumerate(grey):
        level = sample_plane(pet, frame, view, plane) / scale.high
        inside = _inside(pet, view, plane, below.shape[:2])
        opacity = _OPACITY * np.clip(level / _FAINT, 0.0, 1.0) * inside
        above = COLORMAPS[scale.colormap](np.clip(level, 0.0, 1.0))[..., :3]
        planes.append(below + opacity[..., None] * (above - below))
    return Layer(key, title, scale, _picture(planes))


def _inside(pet: Volume, view: View, plane: int, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Pixels within the PET's field of view, which is a box along the axes of the world."""
    _, across, up, _ = PLANES[plane]
    ends = [(-0.5, n - 0.5) for n in pet.shape]
    corners = np.array([(*corner, 1.0) for corner in itertools.product(*ends)]).T
    world = (pet.affine @ corners)[:3]
    middle = (view.low_mm[across] + view.high_mm[across]) / 2
    x = middle + (np.arange(shape[1]) + 0.5 - shape[1] / 2) / PIXELS_PER_MM
    y = view.high_mm[up] - (np.arange(shape[0]) + 0.5) / PIXELS_PER_MM
    is_in = [
        (axis > world[n].min()) & (axis < world[n].max()) for axis, n in ((x, across), (y, up))
    ]
    return is_in[1][:, None] & is_in[0][None, :]


def _picture(planes: list[Array]) -> bytes:
    """Stand planes (H, W, 3) in 0..1 above each other, with black between them, as a JPEG."""
    gap = np.zeros((GAP_MM * PIXELS_PER_MM, planes[0].shape[1], 3))
    parts = [part for plane in planes for part in (plane, gap)][:-1]
    pixels = np.rint(np.concatenate(parts) * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()

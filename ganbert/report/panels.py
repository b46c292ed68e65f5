"""The brain panels of the report: three planes of a volume, as the data URI of a PNG.

Panels are sampled in world millimetres, so that voxel spacing, axis order and field of view cannot
distort the anatomy: superior is up, the subject's left is on the left (neurological convention) and
anterior is up in the axial plane and to the right in the sagittal one. All planes of a column share
one scale (pixels per mm), so that they can be compared.

It knows volumes, not runs. The charts are in `charts.py`.
"""

import base64
import io
import itertools
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import Colormap, LinearSegmentedColormap
from PIL import Image
from scipy.ndimage import center_of_mass, map_coordinates

from ganbert.data.volume import Volume

PIXELS_PER_MM = 2
GAP_MM = 4
# Black at zero, like the background of the other panels, so that error and not agreement catches
# the eye; blue below and orange above, a pair that every colour vision tells apart, in steps of
# equal CIELAB lightness (15, 30, ... 90), so that both signs are equally loud.
_BLUES = ("#012842", "#014a75", "#0e70ab", "#1197e6", "#7dbefe", "#d0e4ff")
_ORANGES = ("#401c01", "#783101", "#b14c01", "#ee6903", "#ffa26d", "#fedcca")
_DIFFERENCE = LinearSegmentedColormap.from_list(
    "difference", [*reversed(_BLUES), "#000000", *_ORANGES]
)
COLORMAPS: dict[str, Colormap] = {
    "mri": matplotlib.colormaps["gray"],
    "pet": matplotlib.colormaps["inferno"],
    "difference": _DIFFERENCE,
}
# Plane: (name, world axis across the picture, world axis up the picture, world axis through it).
PLANES = (("axial", 0, 1, 2), ("coronal", 0, 2, 1), ("sagittal", 1, 2, 0))

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """A stated colour scale.

    Attributes
    ----------
    low, high : intensities at the ends of the colour bar, in `unit`
    """

    colormap: str
    low: float
    high: float
    unit: str

    @property
    def ticks(self) -> tuple[str, str, str]:
        """Text at the left end, the middle and the right end of the colour bar."""
        sign = "+" if self.low < 0 else ""
        low, middle = format(self.low, "g"), format((self.low + self.high) / 2, "g")
        return low.replace("-", "\u2212"), middle, sign + format(self.high, "g")


@dataclass(frozen=True)
class View:
    """Where the three planes of a subject cut.

    Attributes
    ----------
    point_mm : (x, y, z) RAS+, the point that the planes share
    low_mm, high_mm : (x, y, z) corners of the field of view
    """

    point_mm: tuple[float, float, float]
    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]


def choose_view(pet: Volume) -> View:
    """Cut through the centre of the PET's uptake; the field of view is that of its grid."""
    uptake = np.clip(pet.array.mean(axis=0), 0.0, None).astype(np.float64)
    uptake[uptake < 0.2 * np.percentile(uptake, 99)] = 0.0
    index = np.array([(n - 1) / 2 for n in pet.shape])
    if uptake.any():
        index = np.array(center_of_mass(uptake))
    point = (pet.affine @ [*index, 1.0])[:3]
    ends = [(-0.5, n - 0.5) for n in pet.shape]
    corners = np.array([(*corner, 1.0) for corner in itertools.product(*ends)])
    world = (pet.affine @ corners.T)[:3]
    return View(_triple(np.round(point)), _triple(world.min(axis=1)), _triple(world.max(axis=1)))


def _triple(values: Array) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return (x, y, z)


def panel_width_mm(view: View) -> float:
    """Width of the column of panels: the widest plane, so that all planes share one scale."""
    size = np.subtract(view.high_mm, view.low_mm)
    return float(max(size[across] for _, across, _, _ in PLANES))


def sample_plane(volume: Volume, frame: int, view: View, plane: int, *, order: int = 3) -> Array:
    """Sample one plane on square pixels; outside the volume it is 0.

    Parameters
    ----------
    volume : (C, D, H, W)
    plane : position in `PLANES`
    order : of the spline: 3 cubic, 1 linear, which needs no copy of the volume

    Returns
    -------
    array (height, width), float64, in the volume's unit; row 0 is the top of the picture
    """
    _, across, up, through = PLANES[plane]
    half, step = panel_width_mm(view) / 2, 1 / PIXELS_PER_MM
    middle = (view.low_mm[across] + view.high_mm[across]) / 2
    horizontal = np.arange(middle - half + step / 2, middle + half, step)
    vertical = np.arange(view.high_mm[up] - step / 2, view.low_mm[up], -step)
    world = np.ones((4, vertical.size, horizontal.size))
    world[across], world[up] = horizontal[None, :], vertical[:, None]
    world[through] = view.point_mm[through]
    index = np.tensordot(np.linalg.inv(volume.affine), world, axes=1)[:3]
    array = volume.array[frame] if order == 1 else volume.array[frame].astype(np.float64)
    image: Array = map_coordinates(
        array, index, order=order, output=np.float64, mode="constant", cval=0.0
    )
    return image


def draw_panels(volume: Volume, frame: int, view: View, scale: Scale) -> str:
    """Draw the three planes above each other, as the data URI of a palette PNG."""
    gap = np.full((GAP_MM * PIXELS_PER_MM, round(panel_width_mm(view) * PIXELS_PER_MM)), np.nan)
    parts: list[Array] = []
    for plane in range(len(PLANES)):
        image = sample_plane(volume, frame, view, plane)
        parts += [image, gap[:, : image.shape[1]]]
    column = np.concatenate(parts[:-1])
    level = np.clip((column - scale.low) / (scale.high - scale.low), 0.0, 1.0)
    # Colour 255 is kept for the gaps, which are transparent.
    index = np.where(np.isnan(level), 255, np.round(np.nan_to_num(level) * 254)).astype(np.uint8)
    return _palette_png(index, scale.colormap, transparent=255)


def draw_color_bar(scale: Scale) -> str:
    """Draw the colour bar as the data URI of a PNG, low values on the left."""
    return _palette_png(np.tile(np.arange(255, dtype=np.uint8), (8, 1)), scale.colormap)


def _palette_png(
    index: npt.NDArray[np.uint8], colormap: str, transparent: int | None = None
) -> str:
    colors = COLORMAPS[colormap](np.linspace(0, 1, 255))[:, :3]
    height, width = index.shape
    image = Image.frombytes("P", (width, height), index.tobytes())
    image.putpalette([round(v * 255) for v in colors.ravel()] + [0, 0, 0])
    stream = io.BytesIO()
    options = {} if transparent is None else {"transparency": transparent}
    image.save(stream, "PNG", **options)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Label:
    """An orientation letter, placed over a column of panels.

    Attributes
    ----------
    left, top : centre of the letter, per cent of the column's width and height
    """

    text: str
    left: float
    top: float


def place_labels(view: View) -> list[Label]:
    """Place R, L, A, P, S and I at the edges of the three panels of a column."""
    letters = (("L", "R"), ("P", "A"), ("I", "S"))
    labels = []
    for (_, across, up, _), (top, bottom) in zip(PLANES, _edges(view), strict=True):
        middle = (top + bottom) / 2
        labels += [
            Label(letters[across][0], 4.0, middle),
            Label(letters[across][1], 96.0, middle),
            Label(letters[up][1], 50.0, top + 1.8),
            Label(letters[up][0], 50.0, bottom - 1.8),
        ]
    return labels


def name_planes(view: View) -> list[Label]:
    """Place the name of each plane at the lower left of its panel."""
    edges = zip(PLANES, _edges(view), strict=True)
    return [Label(plane[0], 2.5, bottom - 1.8) for plane, (_, bottom) in edges]


def _edges(view: View) -> list[tuple[float, float]]:
    """Top and bottom of each panel, per cent of the column's height."""
    heights = [view.high_mm[up] - view.low_mm[up] for _, _, up, _ in PLANES]
    total = sum(heights) + GAP_MM * (len(PLANES) - 1)
    tops = [sum(heights[:i]) + GAP_MM * i for i in range(len(PLANES))]
    return [(100 * t / total, 100 * (t + h) / total) for t, h in zip(tops, heights, strict=True)]


@dataclass(frozen=True)
class Panel:
    """A column of panels with its colour bar.

    Attributes
    ----------
    key : "mri", "real", "synthesised" or "difference"
    frames : data URI per frame; one for the MRI, which has no frames
    bar : data URI of the colour bar
    """

    key: str
    title: str
    frames: tuple[str, ...]
    scale: Scale
    bar: str


@dataclass(frozen=True)
class CaseFigures:
    """All pictures of one subject."""

    panels: tuple[Panel, ...]
    labels: tuple[Label, ...]
    names: tuple[Label, ...]
    view: View
    aspect: float


@dataclass(frozen=True)
class Scales:
    """The colour scales that all shown subjects share."""

    mri: Scale
    pet: Scale
    difference: Scale


def choose_scales(pets_real: list[Volume], pets_fake: list[Volume]) -> Scales:
    """Choose round ends from all shown subjects and frames.

    PET: 0 to the 99.5th percentile of the real PETs; difference: symmetric, to the 99.5th
    percentile of its size. What lies outside takes the colour of the end.
    """
    top = max(float(np.percentile(pet.array, 99.5)) for pet in pets_real)
    error = max(
        float(np.percentile(np.abs(fake.array - real.array), 99.5))
        for fake, real in zip(pets_fake, pets_real, strict=True)
    )
    unit = pets_real[0].unit
    high, width = round_up(top), round_up(error)
    return Scales(
        mri=Scale("mri", 0.0, 255.0, "arbitrary units"),
        pet=Scale("pet", 0.0, high, unit),
        difference=Scale("difference", -width, width, unit),
    )


def round_up(value: float) -> float:
    """Round up to the next of few easy numbers times a power of ten; 1 if not positive.

    >>> round_up(2.31), round_up(0.06), round_up(0.0)
    (2.5, 0.06, 1.0)
    """
    if not value > 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    steps = (1, 1.2, 1.5, 1.8, 2, 2.2, 2.5, 3, 3.5, 4, 5, 6, 8, 10)
    return float(next(s * power for s in steps if s * power >= value * (1 - 1e-9)))


def draw_case(mri: Volume, pet_real: Volume, pet_fake: Volume, scales: Scales) -> CaseFigures:
    """Draw MRI, real PET, synthesised PET and their difference.

    Parameters
    ----------
    mri : (1, D, H, W), 0..255
    pet_real, pet_fake : (T, D, H, W), one unit, one grid
    """
    view = choose_view(pet_real)
    difference = Volume(pet_fake.array - pet_real.array, pet_real.affine, pet_real.unit)
    columns = (
        ("mri", "T1w MRI (input)", mri, scales.mri),
        ("real", "Real PET", pet_real, scales.pet),
        ("synthesised", "Synthesised PET", pet_fake, scales.pet),
        ("difference", "Synthesised \u2212 real", difference, scales.difference),
    )
    panels = tuple(
        Panel(key, title, draw_frames(volume, view, scale), scale, draw_color_bar(scale))
        for key, title, volume, scale in columns
    )
    height = sum(view.high_mm[up] - view.low_mm[up] for _, _, up, _ in PLANES)
    height += GAP_MM * (len(PLANES) - 1)
    aspect = panel_width_mm(view) / height
    return CaseFigures(panels, tuple(place_labels(view)), tuple(name_planes(view)), view, aspect)


def draw_frames(volume: Volume, view: View, scale: Scale) -> tuple[str, ...]:
    """Draw every frame of a volume."""
    return tuple(draw_panels(volume, t, view, scale) for t in range(volume.array.shape[0]))

"""The tracer table: one row per tracer, the only place that knows about tracers by name.

To add a tracer, add a row; every test over `TRACERS` then covers it. How the phantom paints a
tracer (uptake by tissue and region) is not here but in `data/phantom_uptake.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ganbert.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CentiloidScale:
    """The line from cortical SUVR to Centiloid: `slope * SUVR + intercept`.

    Attributes
    ----------
    slope : Centiloid per SUVR
    intercept : Centiloid
    source : who fitted it and with which pipeline, outside of which it only approximates
    """

    slope: float
    intercept: float
    source: str


@dataclass(frozen=True, kw_only=True)
class BurdenRegions:
    """Where a tracer's burden is read, in the names of one segmentation.

    Attributes
    ----------
    target : names of the regions that make the composite; all their voxels count alike
    source : whose composite it is, or comes near
    """

    target: tuple[str, ...]
    source: str


@dataclass(frozen=True, kw_only=True)
class Tracer:
    """What the software must know about a PET tracer.

    Attributes
    ----------
    name : short name, as the paper writes it (AV45, AV1451, FDG)
    bids_label : value of the BIDS `trc-` entity
    long_name : the BIDS `TracerName`
    radionuclide : the BIDS `TracerRadionuclide`
    half_life_s : physical half-life of the radionuclide, s
    target : what its uptake shows
    reference_region : region whose mean uptake is 1 SUVR, for `prepare` and the burden alike; a key
        of `REFERENCE_REGIONS`, or the name of one region
    data_range_suvr : (low, high), SUVR; the declared range of PSNR and SSIM for images in SUVR
    burden : regions of its composite, by segmentation; the first whose names are all there is taken
    centiloid : from SUVR to the Centiloid scale; None: no amyloid tracer, or no published line
    """

    name: str
    bids_label: str
    long_name: str
    radionuclide: str
    half_life_s: float
    target: str
    reference_region: str
    data_range_suvr: tuple[float, float]
    burden: tuple[BurdenRegions, ...] = ()
    centiloid: CentiloidScale | None = None


def _cortical(*names: str) -> tuple[str, ...]:
    """Names that FreeSurfer gives a region of the Desikan-Killiany atlas, left and right."""
    return tuple(f"ctx-{side}-{name}" for name in names for side in ("lh", "rh"))


def _sides(*names: str) -> tuple[str, ...]:
    """Names that FreeSurfer gives a structure under the cortex, left and right."""
    return tuple(f"{side}-{name}" for name in names for side in ("Left", "Right"))


# FreeSurfer's and FastSurfer's aparc+aseg. frontalpole, temporalpole and bankssts are never asked
# for: FastSurfer (DKT atlas) has none of them.
#
# What the composites were checked against: that of AV45 is what public code for ADNI's florbetapir
# data takes (FreeSurfer's labels of frontal, cingulate, parietal and temporal cortex), but for the
# frontal pole. That of AV1451 has the six regions that SIMEXP/ad_sz ascribes to Jack et al. 2017;
# ADNI's own META_TEMPORAL has five, without the parahippocampal gyrus. That of FDG was not checked:
# Landau et al. 2011 was not at hand.
_AMYLOID_CORTEX = _cortical(
    *("caudalmiddlefrontal", "lateralorbitofrontal", "medialorbitofrontal", "parsopercularis"),
    *("parsorbitalis", "parstriangularis", "rostralmiddlefrontal", "superiorfrontal"),
    *("caudalanteriorcingulate", "rostralanteriorcingulate"),
    *("isthmuscingulate", "posteriorcingulate", "precuneus"),
    *("inferiorparietal", "superiorparietal", "supramarginal"),
    *("middletemporal", "superiortemporal"),
)
_F18_HALF_LIFE_S = 6586.2

# What makes up a reference region in a segmentation that has no region of its name: ours, and
# FreeSurfer's `aseg` (FreeSurferColorLUT.txt). The first way of which all names are there is taken.
# Of the pons there is no other way: the brain stem of `aseg` is more than that.
REFERENCE_REGIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "whole cerebellum": (
        ("cerebellum",),
        ("cerebellar grey matter", "cerebellar white matter"),
        _sides("Cerebellum-Cortex", "Cerebellum-White-Matter"),
    ),
    "cerebellar grey matter": (("cerebellar cortex",), _sides("Cerebellum-Cortex")),
}

TRACERS: dict[str, Tracer] = {
    tracer.name: tracer
    for tracer in (
        Tracer(
            name="AV45",
            bids_label="18FAV45",
            long_name="florbetapir",
            radionuclide="F18",
            half_life_s=_F18_HALF_LIFE_S,
            target="amyloid",
            reference_region="whole cerebellum",
            data_range_suvr=(0.0, 3.0),
            burden=(
                BurdenRegions(
                    target=(
                        *("frontal", "anterior_cingulate", "precuneus_posterior_cingulate"),
                        *("lateral_parietal", "lateral_temporal"),
                    ),
                    source="names of the phantom; near ADNI's composite (Landau et al. 2012)",
                ),
                BurdenRegions(
                    target=_AMYLOID_CORTEX,
                    source=(
                        "cortical composite of ADNI (Landau et al. 2012, Ann Neurol 72(4)) without "
                        "the frontal pole"
                    ),
                ),
            ),
            # Checked to the whole number (183 and -177): pharmaverse/admiralneuro, which names the
            # same paper, and for ADNI's FreeSurfer pipeline another line, 188.22 and -189.16.
            centiloid=CentiloidScale(
                slope=183.07,
                intercept=-177.26,
                source="Navitsky et al. 2018, Alzheimers Dement 14(12), AVID pipeline",
            ),
        ),
        Tracer(
            name="AV1451",
            bids_label="18FAV1451",
            long_name="flortaucipir",
            radionuclide="F18",
            half_life_s=_F18_HALF_LIFE_S,
            target="tau",
            reference_region="cerebellar grey matter",
            # Loewy25/MRI2PET, the public code that evaluates flortaucipir most carefully.
            data_range_suvr=(0.0, 3.5),
            burden=(
                BurdenRegions(
                    target=("medial_temporal", "lateral_temporal"),
                    source="names of the phantom; near the meta-region of Jack et al. 2017",
                ),
                BurdenRegions(
                    target=(
                        *_sides("Amygdala"),
                        *_cortical("entorhinal", "parahippocampal", "fusiform"),
                        *_cortical("inferiortemporal", "middletemporal"),
                    ),
                    source="Jack et al. 2017, Alzheimers Dement 13, temporal meta-region",
                ),
            ),
        ),
        Tracer(
            name="FDG",
            bids_label="18FFDG",
            long_name="fluorodeoxyglucose",
            radionuclide="F18",
            half_life_s=_F18_HALF_LIFE_S,
            target="glucose metabolism",
            # aseg alone has none: it is one of FreeSurfer's substructures of the brainstem.
            reference_region="pons",
            data_range_suvr=(0.0, 3.0),
            burden=(
                BurdenRegions(
                    target=(
                        *("precuneus_posterior_cingulate", "lateral_parietal"),
                        "lateral_temporal",
                    ),
                    source="names of the phantom; where uptake falls in Alzheimer's disease",
                ),
                BurdenRegions(
                    target=_cortical(
                        *("inferiorparietal", "isthmuscingulate", "posteriorcingulate"),
                        "inferiortemporal",
                    ),
                    source="meant to be near the meta-regions of Landau et al. 2011; not checked",
                ),
            ),
        ),
    )
}


def find_tracer(name: str) -> Tracer | None:
    """Return the tracer called `name`, as `get_tracer`; None if no row has that name."""
    for tracer in TRACERS.values():
        if name.lower() in {tracer.name.lower(), tracer.bids_label.lower(), tracer.long_name}:
            return tracer
    return None


def get_tracer(name: str) -> Tracer:
    """Return the tracer called `name` (short name, BIDS label or long name, any case).

    Raises
    ------
    ConfigError
        If no row has that name.
    """
    tracer = find_tracer(name)
    if tracer is not None:
        return tracer
    raise ConfigError(
        "tracer",
        expected=f"one of {', '.join(TRACERS)}",
        found=repr(name),
        remedy="choose a listed tracer or add a row to ganbert/tracers.py",
    )


def declared_data_range(
    tracer: str, unit: str, training_p999: Sequence[float]
) -> tuple[float, float]:
    """Return the (low, high) that PSNR and SSIM of a cohort are computed with.

    Parameters
    ----------
    tracer : short name, a key of `ganbert.tracers.TRACERS`
    unit : unit of the images; in SUVR the range stands in the tracer table
    training_p999 : 99.9th percentiles of the training PETs, in `unit`; used for any other unit

    Raises
    ------
    ConfigError
        If the tracer is not in the table.
    """
    if unit == "SUVR":
        return get_tracer(tracer).data_range_suvr
    return (0.0, float(max(training_p999)))

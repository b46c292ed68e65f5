"""The tracer table: one row per tracer, the only place that knows about tracers by name.

To add a tracer, add a row; every test over `TRACERS` then covers it. How the phantom paints a
tracer (uptake by tissue and region) is not here but in `data/phantom_uptake.py`.
"""

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
    reference_region : region whose mean uptake is 1 SUVR
    data_range_suvr : (low, high), SUVR; the declared range of PSNR and SSIM for images in SUVR
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
    centiloid: CentiloidScale | None = None


_F18_HALF_LIFE_S = 6586.2

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
        ),
        Tracer(
            name="FDG",
            bids_label="18FFDG",
            long_name="fluorodeoxyglucose",
            radionuclide="F18",
            half_life_s=_F18_HALF_LIFE_S,
            target="glucose metabolism",
            reference_region="pons",
            data_range_suvr=(0.0, 3.0),
        ),
    )
}


def get_tracer(name: str) -> Tracer:
    """Return the tracer called `name` (short name, BIDS label or long name, any case).

    Raises
    ------
    ConfigError
        If no row has that name.
    """
    for tracer in TRACERS.values():
        if name.lower() in {tracer.name.lower(), tracer.bids_label.lower(), tracer.long_name}:
            return tracer
    raise ConfigError(
        "tracer",
        expected=f"one of {', '.join(TRACERS)}",
        found=repr(name),
        remedy="choose a listed tracer or add a row to ganbert/tracers.py",
    )

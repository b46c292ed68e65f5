"""The scales that PETs of different scanners and tracers are read on: SUVR and Centiloid."""

from ganbert.data.units import suvr
from ganbert.errors import ConfigError
from ganbert.tracers import get_tracer

__all__ = ["centiloid", "suvr"]


def centiloid(suvr_value: float, tracer: str) -> float:
    """Amyloid burden on the Centiloid scale: 0 for young controls, 100 for typical Alzheimer's.

    The slope belongs to the pipeline that it was fitted on (its target region, its reference
    region, its registration). For an SUVR from any other, this one's among them, the result is an
    approximation until that pipeline is calibrated as Klunk et al. 2015 describe.

    Parameters
    ----------
    suvr_value : mean cortical SUVR to the tracer's reference region
    tracer : short name, a key of `ganbert.tracers.TRACERS`

    Raises
    ------
    ConfigError
        If the tracer is not in the table, is not an amyloid tracer, or has no scale there.

    Source
    ------
    Klunk et al. 2015, Alzheimers Dement 11(1); the line of each tracer: see its row.
    """
    row = get_tracer(tracer)
    if row.centiloid is None:
        is_amyloid = row.target == "amyloid"
        raise ConfigError(
            "tracer",
            expected="an amyloid tracer with a Centiloid scale",
            found=f"{row.name} " + ("without one" if is_amyloid else "which is not amyloid"),
            remedy="use SUVR, or give the tracer's published line in ganbert/tracers.py",
        )
    return row.centiloid.slope * suvr_value + row.centiloid.intercept

"""The output folder of `ganbert prepare`: whose it is, and that no half of it stays.

out/prepare.json            what this folder is made from, written first
out/cache/...               images and one JSON per finished row (`data/cache.py`)
out/prepare-report.tsv      what became of each pair
out/index.json              written last
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ganbert.atomic import SUFFIX as TEMPORARY
from ganbert.atomic import make_folder, output_error, write_text
from ganbert.config import Grid
from ganbert.data.cache import CACHE_NAME
from ganbert.data.frames import AS_IS
from ganbert.data.index import INDEX_NAME
from ganbert.data.pairing import MAX_DAYS
from ganbert.data.refusals import REPORT_NAME
from ganbert.errors import OutputError

_PLAN_NAME = "prepare.json"


class Plan(BaseModel):
    """What an output folder is made from (`prepare.json`).

    Attributes
    ----------
    dataset : absolute path of the input
    layout : key of `LAYOUTS`
    fractions : of subjects in train, val and test
    max_days, series : of `LayoutOptions`
    frames, unit, reference_regions, reference_mask : of `RecastOptions`
    cached : whether images are kept
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    mri_grid: Grid
    pet_grid: Grid
    seed: int
    fractions: tuple[float, float, float]
    layout: str = "bids"
    max_days: int = MAX_DAYS
    series: str | None = None
    frames: str = AS_IS
    unit: str | None = None
    reference_regions: tuple[str, ...] = ()
    reference_mask: str | None = None
    cached: bool = True


@contextlib.contextmanager
def claimed(out: Path, plan: Plan) -> Iterator[None]:
    """Make or take over the output folder; leave no empty shell behind on failure.

    Raises
    ------
    OutputError
        If `out` is not empty and was not begun with the same plan, or cannot be written.
    """
    cache = out / CACHE_NAME
    try:
        is_new = _check_out(out, plan)
        existed = out.exists()
        make_folder(cache)
        _remove_half_done(out)
        # Rows may change, and what is said of them must not outlive them.
        for name in (INDEX_NAME, REPORT_NAME):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise output_error(out, error) from error
    try:
        write_text(out / _PLAN_NAME, plan.model_dump_json(indent=1) + "\n")
        yield
    except BaseException:
        _remove_half_done(out)
        if is_new and not any(cache.glob("*.json")):
            _remove_shell(out, cache, keep=existed)
        raise


def _remove_half_done(out: Path) -> None:
    """Remove what a process that was ended in the middle of a file has left."""
    for folder in (out, out / CACHE_NAME):
        for leftover in folder.glob(f"*{TEMPORARY}"):
            leftover.unlink(missing_ok=True)


def _check_out(out: Path, plan: Plan) -> bool:
    """Return whether `out` is new or empty; raise if it holds anything but the same plan."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    remedy = "choose another folder or remove it"
    try:
        previous = Plan.model_validate_json((out / _PLAN_NAME).read_text())
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        found = "a folder that is not empty" if out.is_dir() else "a file"
        expected = "an empty folder, or one that `ganbert prepare` has begun"
        raise OutputError(out, expected=expected, found=found, remedy=remedy) from error
    changed = [name for name in Plan.model_fields if getattr(previous, name) != getattr(plan, name)]
    if changed:
        found = f"a cache made with {_describe(previous, changed)}"
        raise OutputError(out, expected=_describe(plan, changed), found=found, remedy=remedy)
    return False


def _describe(plan: Plan, names: Sequence[str]) -> str:
    def text(value: object) -> str:
        if not isinstance(value, Grid):
            return str(value)
        shape = "x".join(map(str, value.shape))
        return f"{shape} at {'x'.join(f'{edge:g}' for edge in value.spacing_mm)} mm"

    return ", ".join(f"{name} {text(getattr(plan, name))}" for name in names)


def _remove_shell(out: Path, cache: Path, *, keep: bool) -> None:
    for file in [*cache.iterdir(), out / _PLAN_NAME]:
        file.unlink(missing_ok=True)
    cache.rmdir()
    if not keep:
        out.rmdir()

"""What the disk layouts share: what they return, the choice of an MRI, and what is refused, why.

A layout finds PETs and MRIs; each PET gets the MRI of its subject with the nearest date, within a
limit. Where the dataset gives no dates, the session decides. Whatever does not become a pair is a
`Refusal` with its reason.
"""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ganbert.data.refusals import Refusal
from ganbert.data.volume import Pair
from ganbert.errors import ConfigError, DatasetError, GanbertError

MAX_DAYS = 365
# Month first, as LONI's archive writes it; ISO 8601, as BIDS does.
_DATE_FORMATS = ("%Y-%m-%d", "%m/%d/%Y")


@dataclass(frozen=True)
class LayoutOptions:
    """What the user may decide about what is read of a dataset.

    Attributes
    ----------
    max_days : between PET and MRI, where the dataset gives dates
    series : which of several processings of one scan, where the layout knows any
    diagnosis_column : of the layout's table of persons or pairs; None: one of the usual names
    split_column : that says on which side of the split a subject is; None: there is none
    """

    max_days: int = MAX_DAYS
    series: str | None = None
    diagnosis_column: str | None = None
    split_column: str | None = None

    def __post_init__(self) -> None:
        if self.max_days < 0:
            found = str(self.max_days)
            raise ConfigError("--max-days", expected="0 or more", found=found, remedy="raise it")


DEFAULT_PAIRING = LayoutOptions()


@dataclass(frozen=True)
class Found:
    """What a layout found.

    Attributes
    ----------
    pairs : sorted by subject, session and tracer, of which no two have the same
    refusals : everything else that could have been part of a pair, in the order of paths
    """

    pairs: list[Pair]
    refusals: list[Refusal]


@dataclass(frozen=True)
class Candidate:
    """An MRI that a PET may be paired with.

    Attributes
    ----------
    path : of the image
    session : label, where it has one
    date : of the scan, where it is known
    rank : among several of one date; the lowest is taken, then the first by name
    """

    path: str
    session: str | None = None
    date: datetime.date | None = None
    rank: int = field(default=0)


def choose_mri(
    where: str,
    candidates: Sequence[Candidate],
    *,
    session: str | None,
    date: datetime.date | None,
    max_days: int,
) -> Candidate:
    """Return the MRI for a PET.

    Parameters
    ----------
    where : path of the PET, for the error
    candidates : MRIs of its subject
    session, date : of the PET

    Returns
    -------
    Candidate
        The nearest in time, where one without a date counts as of the day of its session. Without
        dates: of the PET's own session, else without a session, else of any.

    Raises
    ------
    DatasetError
        If there is none, or the nearest is further away than `max_days`.
    """
    if not candidates:
        remedy = "add one, or leave the PET out"
        raise DatasetError(where, expected="a T1w of the subject", found="none", remedy=remedy)

    def by_session(mri: Candidate) -> tuple[int, int, str]:
        sessions = {session: 0, None: 1}
        return (sessions.get(mri.session, 2), mri.rank, mri.path)

    if date is not None:
        days_of = {
            mri: abs((mri.date - date).days) if mri.date else 0
            for mri in candidates
            if mri.date or (session is not None and mri.session == session)
        }
        if any(mri.date for mri in candidates):
            nearest = min(days_of, key=lambda mri: (days_of[mri], by_session(mri)))
            days = days_of[nearest]
            if days > max_days:
                raise DatasetError(
                    where,
                    expected=f"a T1w within {max_days} days",
                    found=f"the nearest {days} days away",
                    remedy="raise --max-days, or leave the PET out",
                )
            return nearest
    return min(candidates, key=by_session)


def parse_date(text: str | None) -> datetime.date | None:
    """Read a date (`YYYY-MM-DD[Thh:mm:ss]`, `MM/DD/YYYY`); None where there is none."""
    day = (text or "").strip().split("T")[0].split(" ")[0]
    for form in _DATE_FORMATS:
        try:
            # A day has no time zone.
            return datetime.datetime.strptime(day, form).date()  # noqa: DTZ007
        except ValueError:
            continue
    return None


def left_out(lacking: str, where: object, subject: str, session: str | None = None) -> Refusal:
    """List a subject (or one of its images) that has only one of the two; `lacking` the other."""
    problem = {"expected": "a T1w and a PET", "found": f"no {lacking}", "remedy": "add it"}
    return Refusal(subject, session, None, DatasetError(where, **problem), "left out")


def identity(pair: Pair) -> tuple[str, str, str]:
    """Subject, session and tracer, by which pairs are sorted; no two have the same."""
    return (pair.subject, pair.session or "", pair.tracer)


def collect(pairs: Iterable[Pair], others: Iterable[Refusal]) -> Found:
    """Sort what was found; of several pairs of one identity keep the first, refuse the others."""
    kept: dict[tuple[str, str, str], Pair] = {}
    refusals = list(others)
    for pair in pairs:
        first = kept.setdefault(identity(pair), pair)
        if first is not pair:
            error = DatasetError(
                pair.pet,
                expected="one PET per subject, session and tracer",
                found=f"also {Path(first.pet).name}, which goes before it",
                remedy="keep one of them in the dataset",
            )
            refusals.append(Refusal(pair.subject, pair.session, pair.tracer, error))
    refusals.sort(key=lambda refusal: refusal.path)
    return Found([kept[key] for key in sorted(kept)], refusals)


def no_pairs(root: Path, refusals: Sequence[Refusal]) -> GanbertError:
    """Say why there is nothing to do: the only reason, or the first one of several."""
    # What was refused says more than an image that nobody asked for.
    refused = [refusal for refusal in refusals if refusal.status == "refused"] or refusals
    if len(refused) == 1:
        return refused[0].error
    return DatasetError(
        root,
        expected="at least one pair that can be used",
        found=f"{len(refused)} that cannot; the first: {refused[0].error}" if refused else "none",
        remedy="mend them and run the same command again",
    )

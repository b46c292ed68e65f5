"""The registry of disk layouts, and what they all keep to."""

import datetime
from pathlib import Path

import pytest

from ganbert.data.layouts import LAYOUTS, LayoutOptions, find_pairs
from ganbert.data.pairing import Candidate, choose_mri
from ganbert.errors import ConfigError, DatasetError


def test_an_unknown_layout() -> None:
    with pytest.raises(ConfigError, match="one of bids, adni, table"):
        find_pairs(Path(), layout="minc")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_refuses_an_empty_folder_and_no_folder(layout: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        find_pairs(tmp_path, layout)
    with pytest.raises(DatasetError, match="found nothing"):
        find_pairs(tmp_path / "none", layout)


def test_a_limit_without_sense() -> None:
    with pytest.raises(ConfigError, match="--max-days"):
        LayoutOptions(max_days=-1)


@pytest.mark.parametrize(
    ("days", "chosen"),
    [
        ({"ses-1": None, "ses-2": 3}, "ses-1"),
        ({"ses-1": None, "ses-2": 0}, "ses-1"),
        ({"ses-3": None, "ses-2": 3}, "ses-2"),
        ({"ses-3": None, "ses-2": -90}, None),
        ({"ses-1": 40, "ses-2": 3}, "ses-2"),
        ({"ses-3": None, "": None}, ""),
    ],
)
def test_an_mri_without_a_date_counts_as_of_the_day_of_its_session(
    days: dict[str, int | None], chosen: str | None
) -> None:
    scanned = datetime.date(2012, 3, 6)
    mris = [
        Candidate(
            f"{session}_T1w.nii",
            session.removeprefix("ses-") or None,
            None if after is None else scanned + datetime.timedelta(days=after),
        )
        for session, after in days.items()
    ]

    def choose() -> str:
        return choose_mri("pet.nii", mris, session="1", date=scanned, max_days=60).path

    if chosen is not None:
        assert choose() == f"{chosen}_T1w.nii"
        return
    with pytest.raises(DatasetError, match="found the nearest 90 days away"):
        choose()

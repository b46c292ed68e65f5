"""The registry of disk layouts, and what they all keep to."""

from pathlib import Path

import pytest

from ganbert.data.layouts import LAYOUTS, LayoutOptions, find_pairs
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

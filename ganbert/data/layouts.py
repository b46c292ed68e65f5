"""From a folder on disk to pairs of T1w and PET: the registry of disk layouts.

    bids    raw BIDS with BIDS-PET                           data/layout_bids.py
    adni    a download of LONI's archive with its CSV        data/layout_adni.py
    table   a CSV or TSV of paired paths                     data/layout_table.py

To add a layout, write its class in a file of its own, add a row to `LAYOUTS`, and name it in
`Layout` of `ganbert/cli/options.py`.

What is wrong with one pair is a `Refusal` in its place; what concerns more than one is an error.
"""

import logging
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Protocol

from ganbert.data.layout_adni import AdniLayout
from ganbert.data.layout_bids import BidsLayout
from ganbert.data.layout_table import TableLayout
from ganbert.data.pairing import DEFAULT_PAIRING, Found, LayoutOptions, no_pairs
from ganbert.data.refusals import Refusal
from ganbert.errors import ConfigError

__all__ = ["LAYOUTS", "Found", "Layout", "LayoutOptions", "find_pairs", "get_layout", "survey"]

_log = logging.getLogger(__name__)
_MAX_NAMED = 3


class Layout(Protocol):
    """A way in which datasets lie on disk.

    Attributes
    ----------
    place_for_results : where a prepared folder may lie, in words
    """

    place_for_results: str

    def searches(self, folder: PurePath) -> bool:
        """Return whether `find_pairs` would take images in `folder`, relative to the root."""
        ...

    def find_pairs(self, root: Path, options: LayoutOptions) -> Found:
        """Return all pairs below `root`, and what did not become one.

        Raises
        ------
        ConfigError, DatasetError
            If the dataset as a whole cannot be used.
        """
        ...


LAYOUTS: dict[str, Layout] = {
    "bids": BidsLayout(),
    "adni": AdniLayout(),
    "table": TableLayout(),
}


def get_layout(name: str) -> Layout:
    """Return a layout by its key in `LAYOUTS`.

    Raises
    ------
    ConfigError
        If there is no such layout.
    """
    if name not in LAYOUTS:
        raise ConfigError(
            "layout", expected=f"one of {', '.join(LAYOUTS)}", found=name, remedy="choose one"
        )
    return LAYOUTS[name]


def find_pairs(root: Path, layout: str = "bids", options: LayoutOptions = DEFAULT_PAIRING) -> Found:
    """Return what `survey` does; raise if there is no pair in it.

    Raises
    ------
    ConfigError, DatasetError, ImageError
        As `survey`; if there is no pair, why.
    """
    found = survey(root, layout, options)
    if not found.pairs:
        raise no_pairs(root, found.refusals)
    return found


def survey(root: Path, layout: str = "bids", options: LayoutOptions = DEFAULT_PAIRING) -> Found:
    """Return all pairs of T1w and PET below `root`, and what did not become one.

    Parameters
    ----------
    layout : key of `LAYOUTS`

    Raises
    ------
    ConfigError
        If there is no such layout.
    DatasetError
        See `Layout.find_pairs`.
    """
    found = get_layout(layout).find_pairs(root, options)
    _log_left_out(found.refusals)
    return found


def _log_left_out(refusals: Sequence[Refusal]) -> None:
    """Log one line a reason: a download may hold thousands of images of another series."""
    paths: dict[str, list[str]] = {}
    for refusal in refusals:
        if refusal.status == "left out":
            paths.setdefault(refusal.reason, []).append(refusal.path)
    for reason, named in paths.items():
        others = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
        _log.warning("left out: %s%s: %s", ", ".join(named[:_MAX_NAMED]), others, reason)

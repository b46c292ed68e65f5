"""From a folder on disk to pairs of T1w and PET: the registry of disk layouts.

    bids    raw BIDS with BIDS-PET                           data/layout_bids.py
    adni    a download of LONI's archive with its CSV        data/layout_adni.py
    table   a CSV or TSV of paired paths                     data/layout_table.py

To add a layout, write its class in a file of its own, add a row to `LAYOUTS`, and name it in
`cli.Layout`.
"""

from pathlib import Path
from typing import Protocol

from ganbert.data.layout_adni import AdniLayout
from ganbert.data.layout_bids import BidsLayout
from ganbert.data.layout_table import TableLayout
from ganbert.data.pairing import DEFAULT_PAIRING, Found, LayoutOptions, Rejected
from ganbert.errors import ConfigError

__all__ = ["LAYOUTS", "Found", "Layout", "LayoutOptions", "Rejected", "find_pairs"]


class Layout(Protocol):
    """A way in which datasets lie on disk."""

    def find_pairs(self, root: Path, options: LayoutOptions) -> Found:
        """Return all pairs below `root`, and what did not become one.

        Raises
        ------
        DatasetError
            If there is no pair.
        """
        ...


LAYOUTS: dict[str, Layout] = {
    "bids": BidsLayout(),
    "adni": AdniLayout(),
    "table": TableLayout(),
}


def find_pairs(root: Path, layout: str = "bids", options: LayoutOptions = DEFAULT_PAIRING) -> Found:
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
    if layout not in LAYOUTS:
        raise ConfigError(
            "layout", expected=f"one of {', '.join(LAYOUTS)}", found=layout, remedy="choose one"
        )
    return LAYOUTS[layout].find_pairs(root, options)

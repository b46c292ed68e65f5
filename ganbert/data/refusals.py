"""What became of each pair: used, refused or left out, and why; as a table beside the cache.

    prepare-report.tsv      subject, session, tracer, status, file, reason: a line for each pair

A reason is the error that the user would have seen, without the place of the dataset. Nothing of a
person beyond the BIDS labels is written: errors are made of expectations, sizes and codes, and
header text is never read.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ganbert.atomic import replacing
from ganbert.errors import GanbertError, ImageError
from ganbert.tables import Line, write_tsv

REPORT_NAME = "prepare-report.tsv"
_UNKNOWN = "n/a"
_MAX_REASON = 400


@dataclass(frozen=True)
class Refusal:
    """A pair that cannot be used.

    Attributes
    ----------
    subject, session : BIDS labels without `sub-` and `ses-`, as far as they are known
    tracer : short name; the label of the file's name, or nothing, where there is no such tracer
    error : why; its `where` is the file, or what names it
    status : "left out": nothing is wrong, a subject has only one of the two images or no side in
        the column of the split, or the user has chosen another series
    """

    subject: str | None
    session: str | None
    tracer: str | None
    error: GanbertError
    status: Literal["refused", "left out"] = "refused"

    @property
    def label(self) -> str:
        """BIDS labels, for messages."""
        labels = [f"sub-{self.subject}" if self.subject else ""]
        labels += [f"ses-{self.session}" if self.session else "", self.tracer or ""]
        return " ".join(filter(None, labels))

    @property
    def path(self) -> str:
        """The file, or what names it."""
        return str(self.error.where)

    @property
    def reason(self) -> str:
        """Expected, found, remedy, in one line."""
        error = self.error
        text = f"expected {error.expected}, found {error.found}; {error.remedy}"
        return " ".join(text.split())


def reason_in(refusal: Refusal, root: Path) -> str:
    """Return the reason without the place of the dataset, at a length for a table."""
    text = refusal.reason
    for prefix in (f"{root}{os.sep}", f"{root.resolve()}{os.sep}"):
        text = text.replace(prefix, "")
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."


def relative_name(where: object, root: Path) -> str:
    """Return the name of a file relative to the dataset; its last part if it lies elsewhere."""
    name = os.path.relpath(os.path.abspath(str(where)), os.path.abspath(root))
    return Path(name).name if name.startswith(os.pardir) else name


def refusal_line(refusal: Refusal, root: Path) -> Line:
    """Return the line of a refused pair."""
    return {
        "subject": refusal.subject or _UNKNOWN,
        "session": refusal.session or _UNKNOWN,
        "tracer": refusal.tracer or _UNKNOWN,
        "status": refusal.status,
        "file": relative_name(refusal.path, root),
        "reason": reason_in(refusal, root),
    }


def prepared_line(
    subject: str, session: str | None, tracer: str, file: str, notes: Sequence[str] = ()
) -> Line:
    """Return the line of a pair that is used.

    Parameters
    ----------
    file : its PET, relative to the dataset
    notes : what the user should know all the same
    """
    return {
        "subject": subject,
        "session": session or _UNKNOWN,
        "tracer": tracer,
        "status": "prepared",
        "file": file,
        "reason": "; ".join(notes) or _UNKNOWN,
    }


def write_report(folder: Path, lines: Iterable[Line]) -> Path:
    """Write the table into `folder`, whole or not at all, sorted by subject, session, tracer.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    keys = ("subject", "session", "tracer", "file")
    ordered = sorted(lines, key=lambda line: [line[key] for key in keys])
    file = folder / REPORT_NAME
    with replacing(file) as temporary:
        write_tsv(temporary, ordered)
    return file


def check_inside(path: str, root: Path) -> None:
    """Refuse a file that is not of the dataset, before it is opened.

    A dataset from elsewhere could otherwise make the software read, and copy into the cache, what
    lies in another place of this machine. Links within the dataset (git-annex) are in order.

    Raises
    ------
    ImageError
        If `path`, with all links followed, lies outside of `root`.
    """
    real, top = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath([real, top]) != top:
        raise ImageError(
            path,
            expected="a file of the dataset",
            found="a link or path that leaves it",
            remedy="copy the file into the dataset",
        )

"""Which images each rank trained on, for whoever has to prove it: RUN/samples/rank-00000.jsonl.

A line a micro-step: the position of its first sample in the stream of the run (`SampleOrder`), and
the rows that were trained on from there. Rows are positions among the index's training rows of the
run's tracer, so that no file beside it names a person. Positions, and not numbers of micro-steps:
they mean the same whatever a resumed run has for ranks, micro-batch and accumulation.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ganbert.atomic import make_folder, output_error, write_text

FOLDER_NAME = "samples"


class SampleLog:
    """The file of one rank, to which it appends; a context manager.

    Parameters
    ----------
    run : folder of the run
    rank : among all processes
    wanted : False writes nothing

    Raises
    ------
    OutputError
        If the file cannot be written.
    """

    def __init__(self, run: Path, rank: int, *, wanted: bool) -> None:
        self._stream = None
        if wanted:
            file = make_folder(run / FOLDER_NAME) / f"rank-{rank:05d}.jsonl"
            try:
                self._stream = file.open("a", buffering=1)
            except OSError as error:
                raise output_error(file, error) from error

    def write(self, first_sample: int, rows: Sequence[int]) -> None:
        """Append one micro-step."""
        if self._stream is not None:
            line = json.dumps({"first_sample": first_sample, "rows": list(rows)}) + "\n"
            try:
                self._stream.write(line)
            except OSError as error:
                raise output_error(Path(self._stream.name), error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()


def rewind(run: Path, samples_seen: int) -> None:
    """Take out what was trained on after the checkpoint that a run goes on from: it comes again.

    Before any rank opens its file.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    for file in _files(run):
        lines = [
            json.dumps(entry) + "\n"
            for entry in _entries(file)
            if entry["first_sample"] < samples_seen
        ]
        write_text(file, "".join(lines))


def read_samples(run: Path) -> dict[int, tuple[int, int]]:
    """Return what was trained on: rank and row, by position in the stream, in its order."""
    seen: dict[int, tuple[int, int]] = {}
    for file in _files(run):
        rank = int(file.stem.removeprefix("rank-"))
        for entry in _entries(file):
            for k, row in enumerate(entry["rows"], start=entry["first_sample"]):
                seen[k] = (rank, row)
    return dict(sorted(seen.items()))


def _files(run: Path) -> list[Path]:
    return sorted((run / FOLDER_NAME).glob("rank-*.jsonl"))


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    """Whole lines: a kill, or a full disk, may have left half of the last one."""
    for line in file.read_text().splitlines():
        try:
            entry = json.loads(line)
            int(entry["first_sample"]), list(entry["rows"])
        except (ValueError, TypeError, KeyError):
            continue
        yield entry

"""Which images each rank trained on, for whoever has to prove it: RUN/samples/rank-00000.jsonl.

A line a micro-step: its number since the start of training, and the rows. Rows are positions among
the index's training rows of the run's tracer, so that no file beside it names a person. A resumed
run appends: where it repeats a micro-step, the last line holds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ganbert.atomic import make_folder, output_error

FOLDER_NAME = "samples"


class SampleLog:
    """The file of one rank; a context manager.

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

    def write(self, micro_step: int, rows: Sequence[int]) -> None:
        """Append one micro-step."""
        if self._stream is not None:
            line = json.dumps({"micro_step": micro_step, "rows": list(rows)}) + "\n"
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


def read_samples(run: Path) -> dict[int, dict[int, list[int]]]:
    """Return what was trained on: rows by rank, by micro-step.

    A line that a kill left half is the last one of its process: the rest holds.
    """
    seen: dict[int, dict[int, list[int]]] = {}
    for file in sorted((run / FOLDER_NAME).glob("rank-*.jsonl")):
        rank = int(file.stem.removeprefix("rank-"))
        for line in file.read_text().splitlines():
            try:
                entry = json.loads(line)
                seen.setdefault(entry["micro_step"], {})[rank] = entry["rows"]
            except ValueError:
                continue
    return seen

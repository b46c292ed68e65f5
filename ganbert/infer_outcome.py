"""What came of a run of `infer`: images, and for each that there is none of, why."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ganbert.errors import GanbertError, ImageError
from ganbert.infer_inputs import Scan


@dataclass(frozen=True)
class Failure:
    """An image that there is no PET of.

    Attributes
    ----------
    error : what went wrong
    crash_file : its traceback, where it was no mistake in the image
    """

    scan: Scan
    error: Exception
    crash_file: Path | None = None

    def __str__(self) -> str:
        text = " ".join(str(self.error).split()) or type(self.error).__name__
        more = f" (traceback: {self.crash_file})" if self.crash_file else ""
        return f"{self.scan.label}: {text}{more}"


@dataclass
class Outcome:
    """What came of a run.

    Attributes
    ----------
    images : paths, of this run and of an earlier one
    failures : of this run
    num_kept : of `images`, how many this run has not made
    num_shared : of those, how many another process has made at the same time
    """

    images: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    num_kept: int = 0
    num_shared: int = 0

    def keep(self, image: Path, *, at_once: bool = False) -> None:
        """Count an image that is there already.

        Parameters
        ----------
        at_once : another process has made it since this one began
        """
        self.images.append(image)
        self.num_kept += 1
        self.num_shared += at_once


def sum_up(outcome: Outcome, num_scans: int, out_dir: Path, say: Callable[[str], None]) -> None:
    """Say what came of it, list what failed, and raise if there is nothing else.

    Parameters
    ----------
    num_scans : that there should be images of
    say : prints and logs a line

    Raises
    ------
    ImageError
        If there is no image, and a T1w is to blame.
    Exception
        If there is none, and a bug is.
    """
    num_earlier = outcome.num_kept - outcome.num_shared
    parts = [f"{num_earlier} from an earlier run"] if num_earlier else []
    parts += [f"{outcome.num_shared} from another process"] if outcome.num_shared else []
    kept = f" ({', '.join(parts)})" if parts else ""
    say(f"{len(outcome.images)} of {num_scans} synthetic PET in {out_dir}{kept}")
    failures = outcome.failures
    if failures and outcome.images:
        say(f"failed: {len(failures)} of {num_scans}")
        for failure in failures:
            say(f"  {failure}")
        num_left = num_scans - len(outcome.images) - len(failures)
        if num_left:
            say(f"not tried after the first failure (--stop-on-first-crash): {num_left}")
        say("mend them and run the same command again; what is finished is kept")
        return
    bug = next((f.error for f in failures if not isinstance(f.error, GanbertError)), None)
    if bug is not None:
        raise bug
    if len(failures) == 1:
        raise failures[0].error
    if failures:
        first = failures[0].error
        raise ImageError(
            out_dir,
            expected=f"{num_scans} readable T1w",
            found=f"{len(failures)} that are not, listed above; the first is "
            f"{first.where if isinstance(first, GanbertError) else first}",
            remedy="mend them and run the same command again; no image was made",
        )

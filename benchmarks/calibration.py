"""How much of the error of a synthetic PET its map of uncertainty tells, on held-out subjects.

    python benchmarks/calibration.py RUN --passes 4 8

For each number of augmented passes: how well the standard deviation ranks voxels by their error
(Spearman), how large the error is beside it (the factor that would make both agree in the mean
square), and the share of voxels whose error lies within one and within two deviations, as they are
and after that factor. A Gaussian has 68.3 % and 95.4 %. The truth is the phantom's noise-free PET
where the dataset has it, and otherwise the PET. In the head, both frames, means over subjects.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from interruption import interruptible
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from ganbert.config import ModelCard
from ganbert.data.conform import ConformedMri
from ganbert.data.direct import read_image
from ganbert.data.index import Row, load_index
from ganbert.errors import one_line_errors
from ganbert.predict import Predictor, load_predictor
from ganbert.run_folder import read_description
from ganbert.synthesis import synthesise

COLUMNS = ("rank correlation", "factor", "in 1 SD", "in 2 SD", "scaled, in 1 SD", "scaled, in 2 SD")


def judge(
    error: npt.NDArray[np.float32], deviation: npt.NDArray[np.float32], factor: float
) -> list[float]:
    """Shares of voxels within one and two deviations, as they are and multiplied by `factor`."""
    size = np.abs(error)
    return [
        float((size <= number * scale * deviation).mean())
        for scale in (1.0, factor)
        for number in (1, 2)
    ]


def measure(predictor: Predictor, data: Path, row: Row, passes: int) -> list[np.ndarray]:
    """Return error and deviation of the voxels in the head of one subject."""
    mri = read_image(data, row.mri)
    conformed = ConformedMri(mri, row.mri.mean, row.mri.std)
    made = synthesise(predictor, mri, conformed=conformed, passes=passes)
    truth = read_image(data, row.truth or row.pet, row.unit).array
    deviation = np.zeros_like(truth) if made.uncertainty is None else made.uncertainty.array
    mask = np.broadcast_to(truth.mean(axis=0) > 0.2 * np.percentile(truth, 99), truth.shape)
    return [(made.pet.array - truth)[mask], deviation[mask]]


def calibrate(run: Path, data: Path, card: ModelCard, passes: int, split: str) -> list[float]:
    """Measure all subjects of a split; the factor comes from the other subjects."""
    predictor = load_predictor(run, "cpu")
    rows = load_index(data).select(split, card.tracer)  # type: ignore[arg-type]
    pairs = [measure(predictor, data, row, passes) for row in rows]
    factors = [float(np.sqrt((e**2).mean() / (s**2).mean())) for e, s in pairs]
    lines = []
    for place, (error, deviation) in enumerate(pairs):
        others = [f for other, f in enumerate(factors) if other != place] or factors
        rank = float(spearmanr(np.abs(error), deviation).statistic)
        lines.append([rank, factors[place], *judge(error, deviation, float(np.mean(others)))])
    return [float(value) for value in np.mean(lines, axis=0)]


def main() -> None:
    """Read the command line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, help="prepared folder, if it has moved")
    parser.add_argument("--passes", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    options = parser.parse_args()
    with one_line_errors():
        data = options.data or Path(read_description(options.run)["data"])
        card = load_predictor(options.run, "cpu").card
        num = len(load_index(data).select(options.split, card.tracer))
        table = Table(title=f"Uncertainty beside error, {num} {options.split} subjects")
        table.add_column("passes")
        for name in COLUMNS:
            table.add_column(name, justify="right")
        for passes in options.passes:
            values = calibrate(options.run, data, card, passes, options.split)
            shares = [f"{100 * value:.1f} %" for value in values[2:]]
            table.add_row(str(passes), f"{values[0]:.2f}", f"{values[1]:.2f}", *shares)
        Console(file=sys.stdout, width=110).print(table)


if __name__ == "__main__":
    with interruptible():
        main()

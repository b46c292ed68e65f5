"""Figures of docs/results.md, drawn from what table1.py left in WORK.

    python benchmarks/table1_figures.py WORK docs/figures --tracer AV45

`differences`: each method minus L1 alone, subject by subject, with 95 % intervals. `histograms`:
how often the intensities of the test subjects' heads occur (the paper's Fig. 7). `images`: one test
subject, the middle slice of the late frame, as each method of the first seed synthesised it.
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from experiment import MEAN, REGIMES, by_subject, paired, read_scores
from interruption import interruptible
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from table1 import METHODS

from ganbert.data.direct import read_image
from ganbert.data.index import Row, load_index
from ganbert.data.nifti import read_volume
from ganbert.data.volume import FloatArray
from ganbert.metrics import head_mask

BETTER = {"psnr": "higher", "ssim": "higher", "intensity_distance": "lower", "top_recall": "higher"}
FAR = (MEAN, "pix2pix_tanh", "ganbert_literal")
# Eight hues that colour-blind eyes tell apart (Okabe and Ito 2008).
COLOURS = ("#000000", "#E69F00", "#D55E00", "#56B4E9", "#009E73", "#0072B2", "#CC79A7")


def differences(scores: list[dict[str, str]], tracer: str, regime: str, seeds: list[int]) -> Figure:
    """Draw one panel a figure: mean differences to L1 alone and their intervals."""
    names = [MEAN, *(name for name in METHODS if name != "l1")]
    figure, panels = plt.subplots(1, len(BETTER), figsize=(12, 3), sharey=True)
    for panel, name in zip(panels, BETTER, strict=True):
        where = {"tracer": tracer, "regime": regime, "reference": "real"}
        base = by_subject(scores, name, seeds, name="l1", **where)
        intervals = {
            n: paired(by_subject(scores, name, seeds, name=n, **where), base) for n in names
        }
        # Some are so far off that they would hide the others: they are named at the edge.
        near = [intervals[n] for n in names if n not in FAR]
        widest = 1.2 * max(abs(bound) for i in near for bound in (i.low, i.high))
        panel.set_xlim(-widest, widest)
        for row, interval in enumerate(intervals.values()):
            if abs(interval.value) > widest:
                edge = math.copysign(0.95 * widest, interval.value)
                side = "right" if edge > 0 else "left"
                panel.text(edge, row, f"{interval.value:+.3g}", ha=side, va="center", fontsize=8)
                continue
            spread = [[interval.value - interval.low], [interval.high - interval.value]]
            panel.errorbar(interval.value, row, xerr=spread, fmt="o", color="#0072B2", capsize=3)
        panel.axvline(0, color="#888888", linewidth=1)
        unit = {"psnr": " (dB)", "intensity_distance": " (SUVR)"}.get(name, "")
        panel.set_xlabel(f"{name}{unit}, {BETTER[name]} is better", fontsize=8)
        panel.set_yticks(
            range(len(names)), [METHODS.get(n, "mean of training PETs") for n in names]
        )
        panel.tick_params(labelsize=8)
        panel.locator_params(axis="x", nbins=5)
    panels[0].invert_yaxis()
    figure.suptitle(
        f"{tracer}, regime {regime}: minus L1 alone, 95 % intervals over subjects", fontsize=10
    )
    figure.tight_layout()
    return figure


def synthesised(
    work: Path, tracer: str, regime: str, method: str, seed: int, row: Row
) -> FloatArray:
    """PET of a test subject as a method made it: (2, D, H, W), SUVR."""
    folder = work / tracer / regime / f"{method}-{seed}" / "evaluation" / "pet_fake"
    session = f"_ses-{row.session}" if row.session else ""
    return read_volume(folder / f"sub-{row.subject}{session}.nii").array


def histograms(work: Path, tracer: str, regime: str, seed: int) -> Figure:
    """Draw the distribution of the head's intensities over all test subjects, both frames."""
    prepared = work / f"prepared-{tracer}"
    values: dict[str, list[FloatArray]] = {}
    for row in load_index(prepared).select("test"):
        mri, pet_real = read_image(prepared, row.mri), read_image(prepared, row.pet)
        mask = head_mask(mri, pet_real.affine, pet_real.shape)
        values.setdefault("real PET", []).append(pet_real.array[:, mask].ravel())
        for method, label in METHODS.items():
            pet_fake = synthesised(work, tracer, regime, method, seed, row)
            values.setdefault(label, []).append(pet_fake[:, mask].ravel())
    figure, axes = plt.subplots(figsize=(7, 4))
    top = float(np.quantile(np.concatenate(values["real PET"]), 0.9999))
    bins = np.linspace(-0.2, top, 90)
    for (label, parts), colour in zip(values.items(), COLOURS, strict=True):
        counts, edges = np.histogram(np.concatenate(parts), bins, density=True)
        width = 2.5 if label == "real PET" else 1.2
        axes.stairs(counts, edges, label=label, color=colour, linewidth=width)
    axes.set(xlabel="SUVR", ylabel="density", yscale="log", title=f"{tracer}, regime {regime}")
    axes.legend(fontsize=8)
    figure.tight_layout()
    return figure


def images(work: Path, tracer: str, regimes: list[str], seed: int) -> Figure:
    """Draw the middle axial slice of one test subject, a row for each regime."""
    prepared = work / f"prepared-{tracer}"
    row = load_index(prepared).select("test")[0]
    mri = read_image(prepared, row.mri).array[0]
    pet_real = read_image(prepared, row.pet).array[-1]
    middle, mri_middle = pet_real.shape[1] // 2, mri.shape[1] // 2
    figure, grid = plt.subplots(
        len(regimes), 2 + len(METHODS), figsize=(13, 2.2 * len(regimes)), squeeze=False
    )
    top = float(np.quantile(pet_real, 0.999))

    def show(axes: Axes, plane: FloatArray, title: str, **how: object) -> None:
        # (D, W) runs posterior to anterior and left to right: anterior is up.
        axes.imshow(plane, origin="lower", **how)
        axes.set_title(title, fontsize=7)
        axes.set_axis_off()

    for line, regime in zip(grid, regimes, strict=True):
        show(line[0], mri[:, mri_middle], f"T1w ({regime})", cmap="gray")
        show(line[1], pet_real[:, middle], "real PET", cmap="inferno", vmin=0, vmax=top)
        for axes, (method, label) in zip(line[2:], METHODS.items(), strict=True):
            pet_fake = synthesised(work, tracer, regime, method, seed, row)[-1]
            show(axes, pet_fake[:, middle], label, cmap="inferno", vmin=0, vmax=top)
    figure.tight_layout()
    return figure


def main() -> None:
    """Draw and save all figures of a tracer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tracer", default="AV45")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    chosen = parser.parse_args()
    scores = read_scores(chosen.work)
    chosen.output.mkdir(parents=True, exist_ok=True)
    drawn = {"images": images(chosen.work, chosen.tracer, chosen.regimes, chosen.seeds[0])}
    for regime in chosen.regimes:
        drawn[f"differences-{regime}"] = differences(scores, chosen.tracer, regime, chosen.seeds)
        drawn[f"histograms-{regime}"] = histograms(
            chosen.work, chosen.tracer, regime, chosen.seeds[0]
        )
    for name, figure in drawn.items():
        # No date in the file: the same figures are the same bytes.
        file = chosen.output / f"table1-{chosen.tracer}-{name}.png"
        figure.savefig(file, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    with interruptible():
        main()

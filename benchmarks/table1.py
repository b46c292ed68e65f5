"""The paper's Tables 1 and 2 on the phantom: all methods, one cohort a tracer, as many steps each.

    python benchmarks/table1.py WORK --tracer AV45 --seeds 1 2 3
    python benchmarks/table1.py WORK --tracer FDG --seeds 1

Drives the commands that a user has (`ganbert phantom`, `prepare`, `train`, `evaluate`), several
cells (regime, method, seed) at a time. What is finished is kept in WORK/scores.tsv, and training
goes on from its last checkpoint, so it may be stopped (Ctrl-C, SIGTERM) and started again with the
same cohort and steps; with benchmarks/results/table1 copied to WORK it shows the published figures,
and goes on from them if a training of now would be like them (origins.py). The table goes to
WORK/table1-TRACER-REFERENCE.md and to the terminal.

Two regimes (intensity_ratio): `paper`, in which the normalised PET reaches 9 and fills the
vocabulary, and `suvr`, in which it reaches 2. Figures are over the head of the held-out test
subjects, in SUVR, against the real PET or its noise-free truth (--reference). The spread is over
seeds; differences to L1 alone (or to --against) are paired by subject (mean over seeds) with 95 %
BCa bootstrap intervals over subjects, given these trainings.
"""

import argparse
import sys

import numpy as np
from experiment import (
    FIGURES,
    MEAN,
    REGIMES,
    Cell,
    Commands,
    add_options,
    by_subject,
    difference,
    make_cells,
    options_of,
    read_scores,
)
from interruption import interruptible
from origins import described

METHODS = {
    "l1": "L1 alone",
    "pix2pix_tanh": "pix2pix (tanh)",
    "pix2pix": "pix2pix (tanhshrink)",
    "ganbert_literal": "GANBERT, 20/1/20, untamed",
    "demo": "GANBERT, tamed",
    "ganbert_cnn": "GANBERT with CNN-D",
}
_COMPARED = ("psnr", "ssim", "intensity_distance", "top_recall")


def format_table(
    scores: list[dict[str, str]],
    methods: list[str],
    seeds: list[int],
    where: dict[str, str],
    against: str = "l1",
) -> list[str]:
    """Lines of two Markdown tables: mean and sd over seeds; differences to `against`."""
    names = {MEAN: "mean of the training PETs", **METHODS}
    of_method = {
        name: {figure: by_subject(scores, figure, seeds, name=name, **where) for figure in FIGURES}
        for name in (MEAN, *methods)
    }
    regime = where["regime"]
    lines = [f"### Regime `{regime}`", "", f"| | {' | '.join(FIGURES)} |"]
    lines.append("|---" * (len(FIGURES) + 1) + "|")
    for name, figures in of_method.items():
        cells = []
        for figure in FIGURES:
            by_seed = np.nanmean(list(figures[figure].values()), axis=0)
            # The training mean has no seed: each cell repeats it.
            many = len(by_seed) > 1 and name != MEAN
            spread = f" ± {by_seed.std(ddof=1):.3f}" if many else ""
            cells.append(f"{by_seed.mean():.3f}{spread}")
        lines.append(f"| {names[name]} | {' | '.join(cells)} |")
    lines += ["", f"| minus {names[against]} | {' | '.join(_COMPARED)} |"]
    lines.append("|---" * (len(_COMPARED) + 1) + "|")
    for name, figures in of_method.items():
        if name != against:
            cells = [difference(figures[f], of_method[against][f]) for f in _COMPARED]
            lines.append(f"| {names[name]} | {' | '.join(cells)} |")
    return [*lines, ""]


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, cohort_seed=7)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--reference", choices=("real", "truth"), default="real")
    parser.add_argument("--against", choices=METHODS, default="l1", help="compare the others to it")
    options = parser.parse_args()
    if options.against not in options.methods:
        parser.error(f"--methods: {options.against} is what others are compared to, name it too")
    return options


def main() -> None:
    """Make what is missing, then print the table."""
    chosen = parse_options()
    work = chosen.work.resolve()
    options = options_of(chosen, "test")
    cells = [
        Cell(chosen.tracer, regime, method, seed, method)
        # Seed by seed, so that a stopped run has whole rows.
        for seed in chosen.seeds
        for regime in chosen.regimes
        for method in chosen.methods
    ]
    make_cells(cells, work, options, Commands(), chosen.jobs, mix_origins=chosen.mix_origins)
    scores = read_scores(work)
    subjects = {s["subject"] for s in scores if s["tracer"] == chosen.tracer}
    lines = [
        f"## {chosen.tracer}: {len(subjects)} test subjects of {chosen.subjects}, against the "
        f"{chosen.reference} PET; seeds {' '.join(map(str, chosen.seeds))}",
        "",
    ]
    for regime in chosen.regimes:
        where = {"tracer": chosen.tracer, "regime": regime, "reference": chosen.reference}
        lines += format_table(scores, chosen.methods, chosen.seeds, where, chosen.against)
    text = "\n".join([*lines, *described(work, [cell.key for cell in cells]), ""])
    against = "" if chosen.against == "l1" else f"-against-{chosen.against}"
    (work / f"table1-{chosen.tracer}-{chosen.reference}{against}.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    with interruptible():
        main()

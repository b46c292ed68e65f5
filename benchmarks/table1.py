"""The paper's Tables 1 and 2 on the phantom: all methods, one cohort, as many steps for each.

    python benchmarks/table1.py WORK --tracer AV45 --seeds 1 2 3

Drives the commands that a user has (`ganbert phantom`, `prepare`, `train`, `evaluate`), one cell
(regime, method, seed) after the other. What is finished is kept, and training goes on from its last
checkpoint, so it may be stopped (Ctrl-C, SIGTERM) and started again with the same cohort and steps.
Everything is in WORK; the table goes to WORK/table1-TRACER-REFERENCE.md and to the terminal.

Two regimes (intensity_ratio): `paper`, in which the normalised PET reaches 9 and fills the
vocabulary, and `suvr`, in which it reaches 2. Figures are over the head, in SUVR, against the real
PET or its noise-free truth (--reference). The spread is over seeds; differences to L1 alone are
paired by test subject (mean over seeds) with 95 % BCa bootstrap intervals.
"""

import argparse
import csv
import json
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml

from ganbert.agreement import paired_bootstrap
from ganbert.config import load_run_config
from ganbert.data.index import load_index

ROOT = Path(__file__).resolve().parents[1]
METHODS = {
    "l1": "L1 alone",
    "pix2pix_tanh": "pix2pix (tanh)",
    "pix2pix": "pix2pix (tanhshrink)",
    "ganbert_literal": "GANBERT, 20/1/20, untamed",
    "demo": "GANBERT, tamed",
    "ganbert_cnn": "GANBERT with CNN-D",
}
MEAN = "training mean"
REGIMES = {"paper": 9.0, "suvr": 2.0}  # normalised 99.9th percentile of the training PETs
FIGURES = ("psnr", "ssim", "rmse", "intensity_distance", "top_recall")
Scores = dict[str, dict[str, list[float]]]  # figure -> subject -> one value a seed


def run(verb: str, *arguments: object) -> None:
    """Run one of the project's own commands; stop at its first failure, or when it was stopped."""
    command = [Path(sys.executable).with_name("ganbert"), verb, *arguments]
    # In a session of its own: Ctrl-C reaches it once, through us, and we wait until it has saved.
    child = subprocess.Popen([str(part) for part in command], cwd=ROOT, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: child.send_signal(number))
    if status := child.wait():
        raise SystemExit(status)


def same_options(work: Path, options: argparse.Namespace) -> None:
    """Refuse to mix cohorts or numbers of steps in one folder."""
    names = ("subjects", "cohort_seed", "size", "max_steps")
    now = {name: getattr(options, name) for name in names}
    file = work / "options.json"
    if file.exists() and (before := json.loads(file.read_text())) != now:
        sys.exit(f"{file}: expected {before}, found {now}; use these options or another folder")
    file.write_text(json.dumps(now))


def intensity_ratio(prepared: Path, tracer: str, top: float) -> float:
    """Ratio at which the 99.9th percentile that `prepare` puts at 9 normalises to `top`."""
    index = load_index(prepared)
    shift = float(np.mean([row.mri.mean / row.mri.std for row in index.select("train")]))
    return index.intensity_ratio[tracer] * (REGIMES["paper"] + shift) / (top + shift)


def prepare_cohort(work: Path, options: argparse.Namespace) -> Path:
    """Make and prepare the cohort, once."""
    bids, prepared = work / f"bids-{options.tracer}", work / f"prepared-{options.tracer}"
    if not bids.exists():
        run("phantom", bids, "--subjects", options.subjects, "--tracer", options.tracer,
            "--seed", options.cohort_seed, "--size", options.size)  # fmt: skip
    if not (prepared / "index.json").exists():
        run("prepare", bids, prepared, "--size", options.size)
    return prepared


def write_recipe(folder: Path, method: str, seed: int, ratio: float) -> Path:
    """Copy a recipe with another seed and intensity ratio."""
    shutil.copytree(ROOT / "ds_configs" / method, folder, dirs_exist_ok=True)
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    settings |= {"seed": seed, "intensity_ratio": ratio, "keep_checkpoints": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder


def evaluated(work: Path, prepared: Path, cell: tuple[str, str, int], steps: int | None) -> Path:
    """Train and evaluate one cell unless that is done; return its metrics.tsv."""
    regime, method, seed = cell
    ratio = intensity_ratio(prepared, prepared.name.partition("-")[2], REGIMES[regime])
    output = work / prepared.name.partition("-")[2] / regime / f"{method}-{seed}"
    table = output / "evaluation" / "metrics.tsv"
    if not table.exists():
        recipe = write_recipe(output.with_name(f"{output.name}.recipe"), method, seed, ratio)
        limit = [] if steps is None else ["--max-steps", steps]
        run("train", "--config", recipe, "--data", prepared, "--output", output, *limit)
        run("evaluate", output)
    return table


def collect(scores: dict[str, Scores], table: Path, label: str, reference: str) -> None:
    """Add one evaluation to the scores of its method and of the mean of the training PETs."""
    names = {"ganbert": label, "mean_of_training": MEAN}
    with table.open() as stream:
        for line in csv.DictReader(stream, delimiter="\t"):
            if (
                line["reference"] == reference
                and line["mask"] == "head"
                and line["method"] in names
            ):
                for figure in FIGURES:
                    of_method = scores[names[line["method"]]][figure]
                    of_method.setdefault(line["subject"], []).append(float(line[figure]))


def difference(scores: Scores, baseline: Scores, figure: str) -> str:
    """Paired difference of two methods over subjects, with its 95 % interval."""
    pairs = [
        (np.mean(values), np.mean(baseline[figure][subject]))
        for subject, values in scores[figure].items()
    ]
    interval = paired_bootstrap(*([float(v) for v in side] for side in zip(*pairs, strict=True)))
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def format_table(regime: str, scores: dict[str, Scores]) -> list[str]:
    """Lines of a Markdown table: mean and sd over seeds of the mean over subjects."""
    heads = [*FIGURES, "PSNR against L1 (dB)", "top-1 % recall against L1"]
    lines = [f"### Regime `{regime}`", "", f"| method | {' | '.join(heads)} |"]
    lines.append("|" + "---|" * (len(heads) + 1))
    for label, of_method in scores.items():
        cells = []
        for figure in FIGURES:
            by_seed = np.array(list(of_method[figure].values())).mean(axis=0)
            spread = f" ± {by_seed.std(ddof=1):.3f}" if len(by_seed) > 1 else ""
            cells.append(f"{by_seed.mean():.3f}{spread}")
        baseline = scores[METHODS["l1"]]
        is_baseline = of_method is baseline
        cells += (
            "-" if is_baseline else difference(of_method, baseline, figure)
            for figure in ("psnr", "top_recall")
        )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--tracer", default="AV45")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--subjects", type=int, default=64)
    parser.add_argument("--cohort-seed", type=int, default=7)
    parser.add_argument("--size", choices=("tiny", "small", "demo", "paper"), default="demo")
    parser.add_argument("--max-steps", type=int, help="instead of the recipes' own")
    parser.add_argument("--reference", choices=("real", "truth"), default="real")
    options = parser.parse_args()
    if "l1" not in options.methods:
        parser.error("--methods: l1 is what the others are compared with, name it too")
    return options


def main() -> None:
    """Run what is missing, then print the table."""
    options = parse_options()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    same_options(work, options)
    prepared = prepare_cohort(work, options)
    test = len({row.subject for row in load_index(prepared).select("test")})
    steps = options.max_steps or load_run_config(ROOT / "ds_configs/l1/run.yaml").max_steps
    lines = [
        f"## {options.tracer}: {test} test subjects of {options.subjects}, against the "
        f"{options.reference} PET; {steps} steps, seeds {options.seeds}",
        "",
    ]
    for regime in options.regimes:
        scores: dict[str, Scores] = defaultdict(lambda: defaultdict(dict))
        # Seed by seed, so that a stopped run has whole rows.
        for seed in options.seeds:
            for method in options.methods:
                table = evaluated(work, prepared, (regime, method, seed), options.max_steps)
                collect(scores, table, METHODS[method], options.reference)
        # Each evaluation repeats the training mean; it has no seed.
        for of_subjects in scores[MEAN].values():
            of_subjects.update({s: values[:1] for s, values in of_subjects.items()})
        lines += format_table(regime, scores)
    text = "\n".join(lines)
    (work / f"table1-{options.tracer}-{options.reference}.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

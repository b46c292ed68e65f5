"""What tames the adversary: variants of ganbert_literal beside L1 alone, on validation subjects.

    python benchmarks/taming.py WORK --variants ratio_1 chord_3 --seeds 1

For choosing the default, never on the test subjects nor on the cohort of table1.py. The variants
are named in VARIANTS: overrides of ds_configs/<recipe>/run.yaml.
"""

import argparse
import sys
from typing import Any

import numpy as np
from experiment import (
    FIGURES,
    LEARNING_RATE,
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

_RATIO = "losses.max_adversarial_ratio"
_NOISE = "discriminator.value_noise"
_GRADIENT = "discriminator.gradient"
_DROPOUT = "discriminator.dropout"
_CNN = {"discriminator.kind": "bert_patchgan", "discriminator.patch_channels": [16, 32, 64]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "l1": ("l1", {}),
    "pix2pix": ("pix2pix", {}),
    "literal": ("ganbert_literal", {}),
    "ratio_0.1": ("ganbert_literal", {_RATIO: 0.1}),
    "ratio_0.3": ("ganbert_literal", {_RATIO: 0.3}),
    "ratio_1": ("ganbert_literal", {_RATIO: 1.0}),
    "ratio_3": ("ganbert_literal", {_RATIO: 3.0}),
    "ratio_10": ("ganbert_literal", {_RATIO: 10.0}),
    "mlm_only_0.1": ("ganbert_literal", {_RATIO: 0.1, "losses.nsp": 0}),
    "mlm_only_0.3": ("ganbert_literal", {_RATIO: 0.3, "losses.nsp": 0}),
    "mlm_only_3": ("ganbert_literal", {_RATIO: 3.0, "losses.nsp": 0}),
    "mlm_only_fast_3": ("ganbert_literal", {_RATIO: 3.0, "losses.nsp": 0, LEARNING_RATE: 1e-3}),
    "mlm_only_fast": ("ganbert_literal", {_RATIO: None, "losses.nsp": 0, LEARNING_RATE: 1e-3}),
    "fast_3": ("ganbert_literal", {_RATIO: 3.0, LEARNING_RATE: 1e-3}),
    "noise_3": ("ganbert_literal", {_RATIO: 3.0, _NOISE: 0.5}),
    "chord_3": ("ganbert_literal", {_RATIO: 3.0, _GRADIENT: "chord"}),
    "chord_noise_1": ("ganbert_literal", {_RATIO: 1.0, _NOISE: 0.5, _GRADIENT: "chord"}),
    "chord_noise_3": ("ganbert_literal", {_RATIO: 3.0, _NOISE: 0.5, _GRADIENT: "chord"}),
    "chord_mlm_fast_1": (
        "ganbert_literal",
        {_RATIO: 1.0, "losses.nsp": 0, _GRADIENT: "chord", LEARNING_RATE: 1e-3},
    ),
    "chord_mlm_fast_3": (
        "ganbert_literal",
        {_RATIO: 3.0, "losses.nsp": 0, _GRADIENT: "chord", LEARNING_RATE: 1e-3},
    ),
    "chord_mlm_fast_10": (
        "ganbert_literal",
        {_RATIO: 10.0, "losses.nsp": 0, _GRADIENT: "chord", LEARNING_RATE: 1e-3},
    ),
    "chord_mostly_mlm_fast_3": (
        "ganbert_literal",
        {
            _RATIO: 3.0,
            "losses.nsp": 1,
            "losses.mlm": 10,
            "losses.reweight": True,
            _NOISE: 0.5,
            _GRADIENT: "chord",
            LEARNING_RATE: 1e-3,
        },
    ),
    "interpolated_3": ("ganbert_literal", {_RATIO: 3.0, _GRADIENT: "interpolated"}),
    "r1_3": ("ganbert_literal", {_RATIO: 3.0, "losses.r1": 10.0, "losses.r1_sigma": 0.5}),
    "smooth_3": ("ganbert_literal", {_RATIO: 3.0, "losses.label_smoothing": 0.1}),
    "reweight": ("ganbert_literal", {_RATIO: None, _NOISE: 0.5, "losses.reweight": True}),
    "lazy": ("ganbert_literal", {_RATIO: None, _NOISE: 0.5, "losses.lazy_above_accuracy": 0.75}),
    "warmup_3": ("ganbert_literal", {_RATIO: 3.0, "losses.adversary_warmup_steps": 150}),
    # The same where the slope is more than noise (0006), so that NSP has something to say.
    "chord_r1_3": (
        "ganbert_literal",
        {_RATIO: 3.0, _GRADIENT: "chord", "losses.r1": 10.0, "losses.r1_sigma": 0.5},
    ),
    "chord_smooth_3": (
        "ganbert_literal",
        {_RATIO: 3.0, _GRADIENT: "chord", "losses.label_smoothing": 0.1},
    ),
    "chord_lazy_3": (
        "ganbert_literal",
        {_RATIO: 3.0, _GRADIENT: "chord", "losses.lazy_above_accuracy": 0.75},
    ),
    "chord_warmup_3": (
        "ganbert_literal",
        {_RATIO: 3.0, _GRADIENT: "chord", "losses.adversary_warmup_steps": 150},
    ),
    "cnn_1": ("ganbert_literal", {**_CNN, _RATIO: 1.0}),
    "cnn_spectral_1": (
        "ganbert_literal",
        {**_CNN, _RATIO: 1.0, "discriminator.spectral_norm": True},
    ),
    "dropout": ("demo", {_DROPOUT: 0.1}),
    "dropout_for_bert": (
        "demo",
        {_DROPOUT: 0.1, "discriminator.dropout_for_generator": False},
    ),
}


def main() -> None:
    """Make what is missing, then print the differences to L1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, cohort_seed=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--regime", choices=("paper", "suvr"), default="paper")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    chosen = parser.parse_args()
    options = options_of(chosen, "val")
    variants = list(dict.fromkeys(["l1", *chosen.variants]))
    cells = [
        Cell(chosen.tracer, chosen.regime, name, seed, *VARIANTS[name])
        for seed in chosen.seeds
        for name in variants
    ]
    work = chosen.work.resolve()
    make_cells(cells, work, options, Commands(), chosen.jobs, mix_origins=chosen.mix_origins)
    scores = read_scores(work)
    for reference in ("real", "truth"):
        where = {"tracer": chosen.tracer, "regime": chosen.regime, "reference": reference}
        lines = [f"\n| against {reference} | {' | '.join(FIGURES)} |", "|---" * 6 + "|"]
        for name in variants:
            cells_of = []
            for figure in FIGURES:
                of_name, of_l1 = (
                    by_subject(scores, figure, chosen.seeds, name=n, **where) for n in (name, "l1")
                )
                mean = np.mean(list(of_name.values()))
                change = "" if name == "l1" else f" ({difference(of_name, of_l1)})"
                cells_of.append(f"{mean:.4f}{change}")
            lines.append(f"| {name} | {' | '.join(cells_of)} |")
        sys.stdout.write("\n".join(lines) + "\n")
    made_with = described(work, [cell.key for cell in cells])
    sys.stdout.write("\n".join(["", *made_with, ""]))


if __name__ == "__main__":
    with interruptible():
        main()

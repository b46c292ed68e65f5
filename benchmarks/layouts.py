"""What it costs to find the pairs of a large dataset, by layout and size.

    python benchmarks/layouts.py [--sizes 100 1000 6000] [--layouts bids adni table]

Makes trees of empty files (names, sidecars and tables are real; images are never opened), finds
their pairs, each in a process of its own, and prints a table. One subject has one T1w and one PET.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from interruption import interruptible

SIDECAR = {
    "Units": "Bq/mL",
    "TracerName": "florbetapir",
    "InjectionStart": 0,
    "FrameTimesStart": [3000, 3300, 3600, 3900],
    "FrameDuration": [300, 300, 300, 300],
}
HEADING = (
    "Image Data ID,Subject,Group,Sex,Age,Visit,Modality,Description,Type,Acq Date,Format,Downloaded"
)


def touch(path: Path) -> Path:
    """Make an empty file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def make_bids(root: Path, num: int) -> None:
    """Write a BIDS tree with a session, a sidecar and a `scans.tsv` for each subject."""
    root.mkdir()
    description = {"Name": "empty", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    for number in range(num):
        stem, folder = f"sub-{number:05d}_ses-1", root / f"sub-{number:05d}" / "ses-1"
        touch(folder / "anat" / f"{stem}_T1w.nii.gz")
        pet = touch(folder / "pet" / f"{stem}_trc-18FAV45_pet.nii.gz")
        pet.with_suffix("").with_suffix(".json").write_text(json.dumps(SIDECAR))
        (folder / f"{stem}_scans.tsv").write_text(
            f"filename\tacq_time\nanat/{stem}_T1w.nii.gz\t2001-01-01T10:00:00\n"
            f"pet/{pet.name}\t2001-02-01T10:00:00\n"
        )


def make_adni(root: Path, num: int) -> None:
    """Write a download of LONI's archive with its CSV."""
    lines = [HEADING]
    for number in range(num):
        subject = f"{number // 100:03d}_S_{number:04d}"
        for image, modality, series, day in (
            (2 * number, "MRI", "MPRAGE", "01"),
            (2 * number + 1, "PET", "AV45 Co-registered Dynamic", "20"),
        ):
            folder = root / "ADNI" / subject / series.replace(" ", "_")
            folder = folder / f"2012-03-{day}_10_00_00.0" / f"I{image}"
            touch(folder / f"ADNI_{subject}_I{image}.nii")
            lines.append(
                f"I{image},{subject},CN,F,76,4,{modality},{series},Processed,3/{day}/2012,NiFTI,"
            )
    (root / "search.csv").write_text("\n".join(lines) + "\n")


def make_table(root: Path, num: int) -> None:
    """Write a table of paths, and a sidecar beside each PET."""
    lines = ["subject,mri,pet,tracer"]
    for number in range(num):
        mri, pet = (touch(root / f"{number:05d}" / name) for name in ("t1w.nii", "pet.nii"))
        pet.with_suffix(".json").write_text(json.dumps(SIDECAR))
        lines.append(f"{number:05d},{mri.relative_to(root)},{pet.relative_to(root)},AV45")
    (root / "pairs.csv").write_text("\n".join(lines) + "\n")


MAKERS: dict[str, Callable[[Path, int], None]] = {
    "bids": make_bids,
    "adni": make_adni,
    "table": make_table,
}


def measure(layout: str, root: Path) -> dict[str, float]:
    """Find the pairs once; the imports are done before."""
    import bids  # noqa: F401

    from ganbert.data.layouts import find_pairs

    start, busy = time.perf_counter(), time.process_time()
    found = find_pairs(root, layout)
    return {
        "pairs": len(found.pairs),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - busy,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_pybids(root: Path) -> dict[str, float]:
    """For comparison: pybids indexes all sidecars, and is asked for what each file is and says."""
    from bids import BIDSLayout

    start, busy = time.perf_counter(), time.process_time()
    layout = BIDSLayout(root, validate=False)
    mris = [dict(file.entities) for file in layout.get(suffix="T1w", extension=".nii.gz")]
    pets = layout.get(suffix="pet", extension=".nii.gz")
    pairs = [(mri, pet.entities, pet.get_metadata()) for mri, pet in zip(mris, pets, strict=True)]
    return {
        "pairs": len(pairs),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - busy,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_process(name: str, root: Path) -> dict[str, float]:
    """Measure in a process of its own: the peak is that of one case, and nothing is warm."""
    command = [sys.executable, __file__, "--measure", name, str(root)]
    # In a session of its own: Ctrl-C reaches us alone, and we end it.
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, start_new_session=True
    )
    content: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return content


def main() -> None:
    """Make the trees, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 6000])
    parser.add_argument("--layouts", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--work", type=Path, help="for the trees; default: a temporary folder")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, root = options.measure[0], Path(options.measure[1])
        print(json.dumps(measure_pybids(root) if name == "pybids" else measure(name, root)))
        return
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        print("| layout | pairs | seconds | CPU seconds | ms a pair | peak MiB |")
        print("|---|---|---|---|---|---|")
        for layout in options.layouts:
            for size in options.sizes:
                root = Path(work) / f"{layout}-{size}"
                MAKERS[layout](root, size)
                names = ("bids", "pybids") if layout == "bids" else (layout,)
                for name in names:
                    row = in_process(name, root)
                    label = "pybids alone" if name == "pybids" else name
                    print(
                        f"| {label} | {row['pairs']:.0f} | {row['seconds']:.1f} "
                        f"| {row['cpu_seconds']:.1f} | {1e3 * row['seconds'] / size:.1f} "
                        f"| {row['peak_mib']:.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    with interruptible():
        main()

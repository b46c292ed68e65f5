"""What stored scores were made with, and whether trainings of now would be like them.

WORK/origins.tsv has a line for each training that WORK/scores.tsv has scores of. Two trainings of
one recipe and seed are alike only if the code of `ganbert`, the libraries, the device and what the
CPU is asked for are (docs/results.md, "The same numbers again"), so tables of one folder are of one
origin, unless --mix-origins is given.
"""

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = "origins.tsv"
KEYS = ("tracer", "regime", "name", "seed", "commit", "versions", "device", "cpu")
Key = tuple[str, str, str, int]  # tracer, regime, name, seed
_ASK = """
import json, torch
from ganbert.runs import cpu_arithmetic, library_versions
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(json.dumps({"versions": library_versions(), "device": device, "cpu": cpu_arithmetic()}))
"""


def commit_of_now() -> str:
    """Commit of the checkout, with `-dirty` where it was edited; `n/a` where there is no git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "n/a"


def _note(recipe: Path) -> list[str]:
    note = recipe / "commits"
    return note.read_text().split() if note.exists() else []


def note_commit(recipe: Path) -> str:
    """Return the commits at which a cell's training was started; the last is that of now."""
    commits = list(dict.fromkeys([*_note(recipe), commit_of_now()]))
    (recipe / "commits").write_text("\n".join(commits))
    return " ".join(commits)


def of_now(environment: Mapping[str, str]) -> dict[str, str]:
    """What a training with this environment would be made with: commit, versions, device, cpu."""
    # A process of its own: what torch computes with is settled when it is loaded.
    command = [sys.executable, "-c", _ASK]
    said = subprocess.run(
        command, env=dict(environment), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    last = said.stdout.rstrip().rpartition("\n")[2]
    return {"commit": commit_of_now()} | {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in json.loads(last).items()
    }


def read_origins(work: Path) -> dict[Key, dict[str, str]]:
    """Origins by training; the last line counts where a training was made twice."""
    file = work / FILE
    if not file.exists():
        return {}
    with file.open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return {(r["tracer"], r["regime"], r["name"], int(r["seed"])): r for r in rows}


def _same_code(commit: str, now: str) -> bool:
    """Whether the package is alike at both: a commit of documentation changes no number."""
    if commit == now:
        return True
    command = ["git", "-C", str(ROOT), "diff", "--quiet", commit, now, "--", "ganbert"]
    # Not 0 either where git does not know one of them, as `-dirty`.
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _differences(origin: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """What differs, each as `NAME OLD, now NEW`; nothing if they are alike."""
    if origin is None:
        return ["no origin is known"]
    found = [
        f"commit {commit}, now {now['commit']}"
        for commit in origin["commit"].split()
        if not _same_code(commit, now["commit"])
    ]
    if origin["device"] != now["device"]:
        found.append(f"device {origin['device']}, now {now['device']}")
    for column in ("versions", "cpu"):
        old, new = json.loads(origin[column]), json.loads(now[column])
        found += [
            f"{name} {old.get(name)}, now {new.get(name)}"
            for name in dict.fromkeys([*old, *new])
            if old.get(name) != new.get(name)
        ]
    return found


def check_origins(
    work: Path, done: Iterable[Key], begun: Iterable[Path], now: Mapping[str, str]
) -> None:
    """Refuse to add trainings of now to trainings that were made otherwise.

    Parameters
    ----------
    work
        Folder of origins.tsv.
    done
        Trainings that have scores.
    begun
        Folders with the recipes of trainings that are to be made or gone on with.
    now
        What `of_now` says.

    Raises
    ------
    SystemExit
        With exit code 2 and one line that says what differs.
    """
    origins = read_origins(work)
    found: Counter[str] = Counter()
    for key in done:
        found.update(_differences(origins.get(key), now))
    for recipe in begun:
        commits = [c for c in _note(recipe) if not _same_code(c, now["commit"])]
        found.update(f"begun at commit {commit}, now {now['commit']}" for commit in commits)
    if found:
        parts = "; ".join(f"{what} ({count})" for what, count in found.most_common())
        sys.stderr.write(
            f"{work}: expected trainings made as they would be now, found others (so many): "
            f"{parts}; use another folder, go on with what those were made with, or mix them with "
            "--mix-origins\n"
        )
        raise SystemExit(2)


def described(work: Path, trainings: Sequence[Key]) -> list[str]:
    """Lines that say what these trainings were made with, one for each origin."""
    origins = read_origins(work)
    found: Counter[str] = Counter()
    for key in trainings:
        origin = origins.get(key)
        if origin is None:
            found["no origin is known"] += 1
            continue
        columns = (json.loads(origin[name]) for name in ("versions", "cpu"))
        parts = [f"{name} {value}" for column in columns for name, value in column.items()]
        found[", ".join([f"commit {origin['commit']}", f"device {origin['device']}", *parts])] += 1
    return [
        f"Made with (trainings {count} of {len(trainings)}): {what}."
        for what, count in found.most_common()
    ]

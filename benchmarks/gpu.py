"""Everything about speed and memory on a GPU, in one command of under nine minutes.

    python benchmarks/gpu.py --out RESULTS                            # one GPU with bfloat16
    python benchmarks/gpu.py --out RESULTS --precision fp16           # V100
    python benchmarks/gpu.py --out RESULTS --switches no_checkpointing channels_last_3d
    python benchmarks/gpu.py --out RESULTS --size tiny --device cpu --recipe tests/data/recipe_tiny

For the full-size job (256^3 -> 2x93x76x76, BERT-base, micro-batch 2, no accumulation): what the
chip does at its best (rates), what a step has to do (counts) and the floors that follow; the step
of the project and of its plain peer (plain.py) by part; inference; the loader alone; and each
candidate speed-up (switches.py) switched on by itself. `--switches` are on in all steps of the
project. Each part is a process of its own: one that cannot run says why in the table, and the
others go on. gpu.json in RESULTS is written after every part. Predictions: docs/performance.md.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu_tables import show
from interruption import interruptible
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("tiny", "small", "demo", "paper")
PRECISIONS = ("fp32", "fp16", "bf16")
# DALI has a package for each CUDA; a name that is not installed is left out.
PACKAGES = (
    "torch", "deepspeed", "transformers", "monai", "nvidia-dali-cuda120", "nvidia-dali-cuda130",
    "apex", "triton", "numpy",
)  # fmt: skip
# With less left than this, no part is started.
_LEAST_SECONDS = 15


def parts(options: argparse.Namespace) -> list[str]:
    """Names of all parts, the most important first."""
    half = options.precision
    steps = [f"step:{v}:{p}" for p in (half, "fp32") for v in ("ganbert", "plain")]
    inference = [f"inference:{v}:{p}" for p in (half, "fp32") for v in ("ganbert", "monai")]
    # The same thing first and last: how far the others can be trusted.
    candidates = [f"candidate:{n}" for n in ("none", *options.candidates, "none again")]
    named = ["rates", "counts", *steps, "data", *inference, *candidates]
    wanted = [name for name in dict.fromkeys(named) if name.startswith(tuple(options.parts))]
    if not wanted:
        sys.stderr.write(
            f"gpu.py: --parts: expected beginnings of {', '.join(dict.fromkeys(named))}; "
            f"found {', '.join(options.parts)}; name some of them\n"
        )
        raise SystemExit(2)
    return wanted


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Say what was measured, where and with what."""
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    versions |= {"cuda": torch.version.cuda or "none"}
    if torch.cuda.is_available():
        versions["cudnn"] = str(torch.backends.cudnn.version())
    asked = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
    found = _ask("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader")
    gpus = [] if found is None else [
        dict(zip(asked.split(","), (v.strip() for v in line.split(",")), strict=True))
        for line in found.splitlines()
    ]  # fmt: skip
    changed = _ask("git", "status", "--porcelain", "--untracked-files=no")
    commit = options.commit or _ask("git", "rev-parse", "HEAD") or "unknown"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpus": gpus,
        "driver": gpus[0]["driver_version"] if gpus else None,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": versions,
        "commit": commit + (" with changes" if changed and not options.commit else ""),
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "job": {
            name: getattr(options, name)
            for name in ("size", "device", "precision", "micro_batch", "steps", "switches")
        } | {"recipe": str(options.recipe)},
    }  # fmt: skip


def _reason(said: str) -> str:
    """The line that says most: the last one, and not the traceback above it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("[rank0]: ")[:300] if lines else "it said nothing"


def _end(child: subprocess.Popen[str]) -> None:
    """End a part and whatever it has started, which shares its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def in_own_process(
    part: str, options: argparse.Namespace, limit: float, compiled: str
) -> dict[str, Any]:
    """Run a part in a process of its own; return its figures, or why there are none.

    Parameters
    ----------
    compiled : folder for what is compiled meanwhile; one that is ended in the midst of it leaves a
        lock behind, for which every later run would wait
    """
    command = [sys.executable, __file__, *options.given, "--part", part]
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": compiled}
    if options.device == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
    started = time.perf_counter()
    # In a session of its own: Ctrl-C reaches us alone, and we end it.
    child = subprocess.Popen(
        command, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        said, errors = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit:.0f} s"}
    finally:
        _end(child)
    seconds = {"part_seconds": round(time.perf_counter() - started, 1)}
    if child.returncode:
        return {"failed": _reason(errors or said)} | seconds
    figures: dict[str, Any] = json.loads(said.splitlines()[-1])
    return figures | seconds


def impossible(part: str, options: argparse.Namespace) -> str | None:
    """Why a part need not be tried here."""
    if options.device == "cpu" and part.startswith("candidate:"):
        from switches import SWITCHES

        switch = SWITCHES.get(part.partition(":")[2])
        if switch is not None and switch.needs_cuda:
            return "needs CUDA"
    return None


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run all parts, one after the other, while there is time; keep what is there after each."""
    wanted, ends = parts(options), time.monotonic() + 60 * options.minutes
    found: dict[str, dict[str, Any]] = {}
    result = {"about": about(options), "parts": found}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "gpu.json"
    compiled = tempfile.TemporaryDirectory(prefix="ganbert-gpu-", ignore_cleanup_errors=True)
    for part in wanted:
        left = ends - time.monotonic()
        if (why := impossible(part, options)) is not None:
            found[part] = {"failed": why}
        elif left < _LEAST_SECONDS:
            found[part] = {"failed": f"left out: the {options.minutes:g} minutes are over"}
        else:
            found[part] = in_own_process(
                part, options, min(left, options.part_seconds), compiled.name
            )
        remark = found[part].get("failed", "done")
        console.print(f"{part}: {remark}", highlight=False, soft_wrap=True, markup=False)
        whole = file.with_suffix(".partial")
        whole.write_text(json.dumps(result, indent=1) + "\n")
        whole.replace(file)
    compiled.cleanup()
    return result


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    from switches import SWITCHES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--recipe", type=Path, default=ROOT / "ds_configs" / "paper")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a process")
    parser.add_argument("--seconds", type=float, default=5.0, help="of loading and inference")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all of it")
    parser.add_argument("--part-seconds", type=float, default=150.0, help="for one part at most")
    parser.add_argument("--switches", nargs="*", choices=SWITCHES, default=[], help="always on")
    parser.add_argument("--candidates", nargs="*", choices=SWITCHES, default=list(SWITCHES))
    parser.add_argument("--parts", nargs="+", default=[""], help="those that begin so")
    parser.add_argument("--commit", help="where git cannot tell")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.given = arguments
    return options


def main() -> None:
    """Measure all parts, or (in a process of its own) one."""
    options = parse(sys.argv[1:])
    if options.part:
        from gpu_parts import run_part

        print(json.dumps(run_part(options.part, options)))
        return
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.stderr.write(
                "gpu.py: expected a GPU that torch can use, found none; "
                "run it on one, or try it with --device cpu --size tiny\n"
            )
            raise SystemExit(2)
    console = Console(width=120)
    show(measure(options, console), console)


if __name__ == "__main__":
    with interruptible():
        main()

"""Liveness: does this training stand still, or is it only slow?

Runs beside the ranks every minute (livenessProbe of base/job.yaml), with the standard library
alone. A sign of life is any change of `ganbert_step`, `ganbert_steps_total` or the count of
checkpoints on the /metrics that the first rank of this node serves. What "still" means follows from
the run itself: no sign for 20 mean steps and 5 mean checkpoints, never less than --floor seconds,
so that a recipe with slow steps needs no other number. Before the first answer (ranks meet,
operations compile, data are checked) only --start ends it.

Exit code 1: it stands still; 0 otherwise.
"""

import argparse
import json
import sys
import time
import urllib.request
from pathlib import Path

STEPS, CHECKPOINTS = 20, 5
SIGNS = ("ganbert_step", "ganbert_steps_total", "ganbert_checkpoint_seconds_count")


def read(port: int) -> dict[str, float] | None:
    """Return what the process serves, labels added up; None if it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    found: dict[str, float] = {}
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series and not series.startswith("#"):
            name = series.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def usual_seconds(samples: dict[str, float]) -> float:
    """Return what 20 mean steps and 5 mean checkpoints of this run take."""
    steps = max(samples.get("ganbert_steps_total", 0.0), 1.0)
    saved = max(samples.get("ganbert_checkpoint_seconds_count", 0.0), 1.0)
    return (
        STEPS * samples.get("ganbert_step_seconds_sum", 0.0) / steps
        + CHECKPOINTS * samples.get("ganbert_checkpoint_seconds_sum", 0.0) / saved
    )


def main() -> int:
    """Compare with what was seen last; remember when it last changed, and how long to wait."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True, help="metrics_port of the recipe")
    parser.add_argument("--state", type=Path, required=True, help="file to remember in")
    parser.add_argument("--floor", type=float, default=900.0, help="seconds, at least")
    parser.add_argument("--start", type=float, default=3600.0, help="seconds before any answer")
    options = parser.parse_args()

    now = time.monotonic()
    try:
        state = json.loads(options.state.read_text())
    except (OSError, ValueError):
        state = {"signs": None, "changed": now, "limit": options.start}
    samples = read(options.port)
    if samples is not None:
        signs = [samples.get(name) for name in SIGNS]
        if signs != state["signs"]:
            state = {"signs": signs, "changed": now}
        state["limit"] = max(options.floor, usual_seconds(samples))
    options.state.write_text(json.dumps(state))
    still = now - state["changed"]
    if still <= state["limit"]:
        return 0
    print(f"no step and no checkpoint for {still:.0f} s, expected within {state['limit']:.0f} s")
    return 1


if __name__ == "__main__":
    sys.exit(main())

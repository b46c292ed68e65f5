"""A process that holds the model on one device and turns T1w files into PET files, one at a time.

    python -m ganbert.serve.worker --model MODEL --device cpu

Requests come as JSON lines on standard input, replies leave as JSON lines on standard output; what
libraries print goes to standard error. When the service is gone, so is this process, at once.
"""

import argparse
import json
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ganbert import derivatives
from ganbert.data.conform import conform_mri
from ganbert.data.nifti import read_volume, write_volume
from ganbert.errors import GanbertError, ImageError
from ganbert.predict import Predictor, load_predictor
from ganbert.quality import Quality
from ganbert.serve.jobs import PET_NAME, SIDECAR_NAME, STD_NAME, STD_SIDECAR_NAME
from ganbert.synthesis import synthesise

log = logging.getLogger(__name__)

# The share of the whole that is done when a stage begins.
READING, SYNTHESISING, WRITING = 0.02, 0.1, 0.95
INPUT_SHA256_KEY = "GanbertInputSHA256"
# The upload has no name that a sidecar could quote.
_T1W = PurePosixPath("T1w.nii.gz")

Say = Callable[[dict[str, Any]], None]


def main() -> None:
    """Serve requests until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", required=True)
    options = parser.parse_args()
    logging.basicConfig(format="ganbert: worker: %(message)s")
    # A Ctrl-C reaches the whole group, and systemd sends SIGTERM to all of a service; the service
    # decides what becomes of its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    say = _open_replies()
    requests = _read_requests()
    try:
        predictor = load_predictor(options.model, options.device)
    except GanbertError as error:
        say({"refused": [str(error.where), error.expected, error.found, error.remedy]})
        return
    say({"ready": True})
    while True:
        say(_answer(requests.get(), predictor, say))


def _open_replies() -> Say:
    """Keep standard output for replies alone: whatever else prints goes to standard error."""
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return lambda reply: print(json.dumps(reply), file=stream, flush=True)


def _read_requests() -> "queue.Queue[dict[str, Any]]":
    requests: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        # In the middle of a computation too: nobody waits for it any more.
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return requests


def _answer(request: dict[str, Any], predictor: Predictor, say: Say) -> dict[str, Any]:
    try:
        quality = compute(
            Path(request["t1w"]), Path(request["folder"]), predictor, say,
            passes=request["passes"], tracers=request["tracers"],
        )  # fmt: skip
    except ImageError as error:
        return {"failed": {"kind": "image", "reason": describe(error)}}
    except Exception:
        log.exception("an image could not be synthesised")
        reason = "the service failed on this image; its operator finds the cause in its log"
        return {"failed": {"kind": "internal", "reason": reason}}
    return {"flags": [asdict(flag) for flag in quality.flags]}


def describe(error: ImageError) -> str:
    """Return the line for whoever sent the image: it knows no path of this machine."""
    text = f"expected {error.expected}, found {error.found}; {error.remedy}"
    return " ".join(text.split())


def compute(
    t1w: Path,
    folder: Path,
    predictor: Predictor,
    say: Say,
    *,
    passes: int = 0,
    tracers: Sequence[str] = (),
) -> Quality:
    """Write PET and sidecar of one T1w, and its map of uncertainty if there are passes for it.

    Parameters
    ----------
    t1w : `.nii` or `.nii.gz`
    folder : where `PET_NAME`, `SIDECAR_NAME` and those of the map are written
    say : is told of each stage and of the progress, 0 to 1
    passes : augmented ones, see `synthesis.synthesise`
    tracers : that are wanted; a result of none of them is flagged

    Returns
    -------
    flags and measures, as they stand in the sidecar

    Raises
    ------
    ImageError
        If the T1w cannot be used.
    OutputError
        If the results cannot be written.
    """
    card = predictor.card
    say({"stage": "reading", "progress": READING})
    sha256: dict[str, str] = {}
    mri = read_volume(t1w, sha256=sha256)
    conformed = conform_mri(mri, card.mri_grid)
    say({"stage": "synthesising", "progress": SYNTHESISING})
    with _Progress(predictor.generator, say, 1 + passes):
        made = synthesise(predictor, mri, conformed=conformed, passes=passes, tracers=tracers)
    say({"stage": "writing", "progress": WRITING})
    source = {INPUT_SHA256_KEY: sha256[str(t1w)]}
    write_volume(folder / PET_NAME, made.pet)
    sidecar = derivatives.pet_sidecar(card, _T1W, made.quality.as_json())
    derivatives.write_json(folder / SIDECAR_NAME, sidecar | source)
    if made.uncertainty is not None:
        write_volume(folder / STD_NAME, made.uncertainty)
        sidecar = derivatives.std_sidecar(card, _T1W, passes)
        derivatives.write_json(folder / STD_SIDECAR_NAME, sidecar | source)
    return made.quality


class _Progress:
    """Counts the layers of a network that have been computed; says so at each new percent."""

    def __init__(self, network: torch.nn.Module, say: Say, num_passes: int) -> None:
        self._layers = [module for module in network.modules() if not list(module.children())]
        self._num_steps = num_passes * len(self._layers)
        self._say, self._done, self._said = say, 0, 0
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def _step(self, *_: object) -> None:
        self._done += 1
        percent = min(100 * self._done // self._num_steps, 100)
        if percent > self._said:
            self._said = percent
            progress = SYNTHESISING + (WRITING - SYNTHESISING) * percent / 100
            self._say({"stage": "synthesising", "progress": round(progress, 4)})

    def __enter__(self) -> None:
        self._hooks = [layer.register_forward_hook(self._step) for layer in self._layers]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


if __name__ == "__main__":
    main()

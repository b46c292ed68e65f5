"""TensorBoard and Weights & Biases through DeepSpeed's own monitor, if generator.json asks.

One monitor for the run, on rank 0. DeepSpeed would give each engine its own, and both would write
`Train/Samples/lr` into one place: two curves under one name. So the engines get none
(`without_monitors`), and each value of a step goes out under the name of its network.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspeed.monitor.config import get_monitor_config
from deepspeed.monitor.monitor import MonitorMaster

from ganbert.atomic import output_error
from ganbert.errors import GanbertError, PlatformError
from ganbert.step_stats import StepStats, losses_of, starting_with, token_shares_of

# Keys of DeepSpeed, and the packages that they need.
MONITORS = ("tensorboard", "wandb")
_OF_A_NETWORK = ("learning_rate_", "gradient_norm_", "fp16_scale_")
Event = tuple[str, float, int]


def without_monitors(engine_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a DeepSpeed engine is given: everything but the monitors."""
    return {key: value for key, value in engine_config.items() if key not in MONITORS}


def check_packages(where: str, engine_config: Mapping[str, Any]) -> None:
    """Refuse a monitor whose package is not installed.

    Raises
    ------
    PlatformError
        Naming the extra to install.
    """
    for name in _switched_on(engine_config):
        if importlib.util.find_spec(name) is None:
            raise PlatformError(
                f"{where}: {name}",
                expected=f"the package {name}",
                found="none",
                remedy=f"pip install 'ganbert[{name}]', or set \"enabled\": false",
            )


def _switched_on(engine_config: Mapping[str, Any]) -> list[str]:
    asked = get_monitor_config(_blocks(engine_config))
    return [name for name in MONITORS if getattr(asked, name).enabled]


def _blocks(engine_config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(engine_config[name]) for name in MONITORS if name in engine_config}


def events(stats: StepStats) -> list[Event]:
    """Values of a step by their names there; the third number is the volumes seen so far.

    Volumes and not steps, as DeepSpeed has it: curves of runs with other batches lie over each
    other.
    """
    named: dict[str, float | None] = {
        f"{network}/loss_{term}": value for (network, term), value in losses_of(stats).items()
    }
    for prefix in _OF_A_NETWORK:
        for network, value in starting_with(stats, prefix).items():
            named[f"{network}/{prefix.removesuffix('_')}"] = value
    for kind, value in starting_with(stats, "nsp_accuracy_").items():
        named[f"discriminator/nsp_accuracy_{kind}"] = value
    for (image, band), value in token_shares_of(stats).items():
        named[f"tokens_{image}/{band}"] = value
    named |= {
        "validation/l1": stats.validation_l1,
        "progress/step": float(stats.step),
        "progress/epoch": stats.epoch,
        "speed/volumes_per_second": stats.volumes_per_second,
        "speed/step_seconds": stats.seconds,
        "speed/data_wait_seconds": stats.data_wait_seconds,
    }
    return [(name, v, stats.samples_seen) for name, v in named.items() if v is not None]


class MonitorSink:
    """What rank 0 hands each step to, if the recipe asks for TensorBoard or Weights & Biases.

    Parameters
    ----------
    engine_config : generator.json, whose blocks `tensorboard` and `wandb` are DeepSpeed's
    run : folder of the run: RUN/tensorboard unless `output_path` says otherwise
    samples_seen : by the checkpoint that the run goes on from; 0 at the start

    Raises
    ------
    GanbertError
        If one of them cannot be opened.
    """

    def __init__(self, engine_config: Mapping[str, Any], run: Path, samples_seen: int) -> None:
        blocks = _blocks(engine_config)
        # DeepSpeed's own default is the folder that the launcher was called from.
        if "tensorboard" in blocks and not blocks["tensorboard"].get("output_path"):
            blocks["tensorboard"] = {
                "job_name": "tensorboard",
                **blocks["tensorboard"],
                "output_path": str(run),
            }
        if "wandb" in _switched_on(engine_config):
            # It would send what is printed, and lines of errors name subjects.
            os.environ.setdefault("WANDB_CONSOLE", "off")
            os.environ.setdefault("WANDB_DIR", str(run))
        self._where = run
        try:
            self._monitors = MonitorMaster(get_monitor_config(blocks))
        except OSError as error:
            raise output_error(Path(error.filename or run), error) from error
        except _refusals() as error:
            raise _no_monitor(error) from error
        if samples_seen > 0:
            self._forget_after(samples_seen)

    @classmethod
    def open(
        cls, engine_config: Mapping[str, Any], run: Path, samples_seen: int
    ) -> list["MonitorSink"]:
        """Return the sink, or none where nothing is switched on."""
        return [cls(engine_config, run, samples_seen)] if _switched_on(engine_config) else []

    def _forget_after(self, samples_seen: int) -> None:
        """Tell TensorBoard that what was written beyond the checkpoint is being done again."""
        if self._monitors.tb_monitor is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog

        writer = self._monitors.tb_monitor.summary_writer.file_writer
        start = SessionLog(status=SessionLog.START)
        writer.add_event(Record(session_log=start), step=samples_seen + 1)

    def write(self, stats: StepStats) -> None:
        """Hand on one step.

        Raises
        ------
        OutputError
            If the file of events cannot be written.
        GanbertError
            If Weights & Biases has failed.
        """
        try:
            self._monitors.write_events(events(stats))
        except OSError as error:
            raise output_error(Path(error.filename or self._where), error) from error
        except _refusals() as error:
            raise _no_monitor(error) from error

    def close(self) -> None:
        """Close the file of events; Weights & Biases ends with the process, and sees how."""
        if self._monitors.tb_monitor is not None:
            self._monitors.tb_monitor.summary_writer.close()


def _refusals() -> tuple[type[Exception], ...]:
    """What Weights & Biases raises; nothing where nobody has imported it."""
    wandb = sys.modules.get("wandb")
    return () if wandb is None else (wandb.Error,)


def _no_monitor(error: Exception) -> GanbertError:
    return PlatformError(
        "generator.json: wandb",
        expected="Weights & Biases that takes the run",
        found=(str(error).splitlines() or [type(error).__name__])[0],
        remedy='log in (`wandb login`), set WANDB_MODE=offline, or set "enabled": false',
    )

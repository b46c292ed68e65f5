"""What the images start: `deepspeed` under a parent that hands signals on, anything else as it is.

`python -m ganbert.container WORDS`, from docker/entrypoint:
- `deepspeed ...` runs under `launch.supervise`, so that SIGTERM reaches all ranks at once and the
  container's exit code is what became of them. Ranks on other nodes (pdsh) are not seen: call
  `deepspeed` as the container's command there, past the entrypoint.
- Another program replaces this process: `ganbert prepare ...`, `bash`.
- Anything else is what a BIDS-App is given: `/data /out participant` goes to `ganbert infer`, with
  `--model $GANBERT_MODEL` if no model is named.

$GANBERT_UMASK, if set, is the umask of all of them; ranks that come by ssh take it themselves.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ganbert.errors import ConfigError, one_line_errors
from ganbert.launch import supervise
from ganbert.supervisor import supervised
from ganbert.umask import take_umask

MODEL_VARIABLE = "GANBERT_MODEL"
# Torch takes seconds to import; without a device (or WSL's) there is nothing to ask it.
_DEVICES = ("nvidia[0-9]*", "dxg")


def command_of(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the command that the words given to the container mean.

    Parameters
    ----------
    words : after the entrypoint; none is the bare training command
    environment : of the process

    Raises
    ------
    ConfigError
        If `deepspeed` is asked for where it is not installed: in the image for inference.
    """
    if not words:
        words = ["deepspeed", "ganbert/train.py"]
    program = shutil.which(words[0], path=environment.get("PATH"))
    if program is not None:
        return [program, *words[1:]]
    if words[0] == "deepspeed":
        raise ConfigError(
            words[0],
            expected="the image for training",
            found="one without deepspeed",
            remedy="use the image whose tag ends in -train",
        )
    model = environment.get(MODEL_VARIABLE)
    asks_only = {"--help", "--version"} & set(words)
    is_named = any(word == "--model" or word.startswith("--model=") for word in words)
    if model and not is_named and not asks_only and "group" not in words:
        words = [*words, f"--model={model}"]
    return [str(Path(sys.executable).with_name("ganbert")), "infer", *words]


def is_launcher(command: Sequence[str]) -> bool:
    """Say whether a command starts ranks under DeepSpeed's launcher."""
    return Path(command[0]).name == "deepspeed"


def run(words: Sequence[str]) -> int:
    """Run what the words mean; return only if it was the launcher, with its true exit code."""
    command = command_of(words)
    take_umask()
    devices = (path for pattern in _DEVICES for path in Path("/dev").glob(pattern))
    if any(devices):
        # In a process of its own: this one stays small, and opens no GPU.
        asked = subprocess.run([sys.executable, "-P", "-m", "ganbert.gpu_arch"], check=False)
        if asked.returncode != 0:
            return asked.returncode
    if is_launcher(command):
        return supervise(command, supervised(dict(os.environ)))
    os.execv(command[0], command)  # noqa: S606


def main() -> None:
    """Entry point of the images."""
    with one_line_errors():
        raise SystemExit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

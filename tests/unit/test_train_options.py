"""The command line of the training script, its randomness, and how it stops."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ganbert.errors import ConfigError
from ganbert.ranks import StopRequest
from ganbert.train import seed_micro_step
from ganbert.train_options import parse_options

ROOT = Path(__file__).parents[2]
REQUIRED = ["--config", "ds_configs/demo", "--data", "prepared", "--output", "run"]
VARIABLES = {"GANBERT_CONFIG": "c", "GANBERT_DATA": "d", "GANBERT_OUTPUT": "o"}


def test_required_options_are_enough() -> None:
    options = parse_options(REQUIRED, {})
    assert options.config == Path("ds_configs/demo")
    assert options.data == Path("prepared")
    assert options.output == Path("run")
    assert options.resume == "auto"
    assert options.max_steps is None
    assert options.tracer is None


def test_launchers_own_option_is_accepted() -> None:
    assert parse_options(["--local_rank=1", *REQUIRED], {}) == parse_options(REQUIRED, {})


def test_environment_fills_what_the_command_leaves_out() -> None:
    options = parse_options([], VARIABLES)
    assert (options.config, options.data, options.output) == (Path("c"), Path("d"), Path("o"))


def test_an_option_comes_before_its_variable() -> None:
    options = parse_options(["--data", "prepared"], VARIABLES)
    assert (options.config, options.data, options.output) == (
        Path("c"),
        Path("prepared"),
        Path("o"),
    )


def test_the_papers_recipe_is_the_default() -> None:
    # An empty value is what a manifest gives that leaves a key out.
    options = parse_options(REQUIRED[2:], {"GANBERT_CONFIG": ""})
    assert options.config == ROOT / "ds_configs" / "paper"


def test_one_line_asks_for_all_that_is_missing() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options([], {})
    line = str(caught.value)
    assert "--data or GANBERT_DATA and --output or GANBERT_OUTPUT" in line
    assert "--config" not in line
    assert ".deepspeed_env" in line


def test_other_options_are_read() -> None:
    options = parse_options(
        [*REQUIRED, "--resume", "none", "--max-steps", "7", "--tracer", "FDG"], {}
    )
    assert (options.resume, options.max_steps, options.tracer) == ("none", 7, "FDG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*REQUIRED, "--resume", "perhaps"], "perhaps"),
        ([*REQUIRED, "--max-steps", "many"], "many"),
        ([*REQUIRED, "--epochs", "5"], "--epochs"),
    ],
)
def test_mistakes_are_named_and_end_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(arguments, {})
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def drawn(seed: int, micro_step: int, rank: int) -> tuple[list[float], list[float]]:
    """Random numbers of dropout and of the masks."""
    masks = seed_micro_step(seed, micro_step, rank)
    return torch.rand(4).tolist(), torch.rand(4, generator=masks).tolist()


def test_randomness_follows_from_seed_step_and_rank() -> None:
    first = drawn(1, 2, 3)
    drawn(7, 8, 9)
    assert drawn(1, 2, 3) == first


def test_no_two_micro_steps_draw_the_same() -> None:
    # Among them (0, 1) and (1, 0): a sum of step and rank would not do.
    places = [(s, m, r) for s in range(3) for m in range(3) for r in range(3)]
    draws = [tuple(numbers) for place in places for numbers in drawn(*place)]
    assert len(set(draws)) == 2 * len(places)


def test_masks_do_not_depend_on_what_dropout_drew() -> None:
    masks = seed_micro_step(1, 2, 3)
    torch.rand(100)
    assert torch.rand(4, generator=masks).tolist() == drawn(1, 2, 3)[1]


@pytest.fixture
def _restored_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_restored_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_becomes_a_wish_to_stop(number: signal.Signals) -> None:
    stop = StopRequest()
    stop.install()
    assert not stop.received
    os.kill(os.getpid(), number)
    assert stop.received


@pytest.mark.usefixtures("_restored_signals")
def test_second_ctrl_c_aborts_and_a_second_sigterm_does_not() -> None:
    StopRequest().install()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)

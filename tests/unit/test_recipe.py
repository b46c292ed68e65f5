"""Recipes that name another one as their base say only what differs."""

import json
import re
from pathlib import Path
from typing import Any

import deepspeed.runtime.constants
import pytest
import yaml
from deepspeed.monitor.config import DeepSpeedMonitorConfig
from deepspeed.runtime.activation_checkpointing import config as checkpointing_config
from deepspeed.runtime.zero import config as zero_config

from ganbert.config import GRIDS
from ganbert.engine_keys import ActivationCheckpointing, EngineConfig
from ganbert.errors import ConfigError
from ganbert.model_table import expect_memory
from ganbert.recipe import Recipe, load_recipe, read_contents

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
RECIPES = sorted(file.parent for file in DS_CONFIGS.glob("*/run.yaml"))
_AT_DEMO_SIZE = {
    "demo", "l1", "pix2pix", "pix2pix_tanh", "ganbert_cnn", "ganbert_literal",
}  # fmt: skip


def write(folder: Path, run: dict[str, Any], **engines: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    for name, content in engines.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    run = {"max_steps": 5, "seed": 3, "losses": {"nsp": 2.0, "l1": 7.0}}
    return write(tmp_path / "base", run, generator={"a": 1, "b": {"c": 2}}, discriminator={"d": 4})


def test_what_is_not_said_is_the_bases(tmp_path: Path, base: Path) -> None:
    derived = write(tmp_path / "derived", {"base": "../base"})
    assert read_contents(derived) == read_contents(base)
    assert load_recipe(derived) == load_recipe(base)


def test_a_section_replaces_the_bases_whole(tmp_path: Path, base: Path) -> None:
    own = {"base": "../base", "losses": {"nsp": 1.0}}
    recipe = load_recipe(write(tmp_path / "derived", own, generator={"b": {"e": 3}}))
    assert (recipe.run.max_steps, recipe.run.seed, recipe.run.losses.nsp) == (5, 3, 1.0)
    assert recipe.run.losses.l1 == 20.0, "the default, and not the base's 7"
    assert recipe.generator_engine == {"a": 1, "b": {"e": 3}}
    assert recipe.discriminator_engine == {"d": 4}


def test_null_takes_the_bases_key_away(tmp_path: Path, base: Path) -> None:
    own = {"base": "../base", "seed": None}
    recipe = load_recipe(write(tmp_path / "derived", own, generator={"b": None}))
    assert recipe.run.seed == 0
    assert recipe.generator_engine == {"a": 1}


def test_bases_may_have_bases_and_are_seen_from_their_own_folder(
    tmp_path: Path, base: Path
) -> None:
    write(base / "below", {"base": "..", "max_steps": 6})
    derived = write(tmp_path / "derived", {"base": "../base/below", "seed": 9})
    run = load_recipe(derived).run
    assert (run.max_steps, run.seed, run.losses.nsp) == (6, 9, 2.0)


def test_a_circle_of_bases_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "one", {"base": "../two"})
    write(tmp_path / "two", {"base": "../one"})
    with pytest.raises(ConfigError, match=r"one/run.yaml: base: .* found a circle"):
        load_recipe(tmp_path / "one")


@pytest.mark.parametrize("name", ["../nowhere", 3, None, ["../base"]])
def test_a_base_that_is_none_is_named(tmp_path: Path, base: Path, name: object) -> None:
    derived = write(tmp_path / "derived", {"base": name})
    with pytest.raises(ConfigError, match=r"derived/run.yaml: base: expected the folder"):
        load_recipe(derived)


def test_a_key_that_stands_twice_is_one_line(tmp_path: Path, base: Path) -> None:
    run, engine = base / "run.yaml", base / "generator.json"
    right = run.read_text()
    for twice, line in (("seed: 4\n", 6), ("losses: {l1: 1, nsp: 2, l1: 3}\n", 1)):
        run.write_text(right + twice if "seed" in twice else twice)
        found = f"run.yaml: .* key '(seed|l1)' for the second time .*line {line}, column"
        with pytest.raises(ConfigError, match=found) as caught:
            read_contents(base)
        assert len(str(caught.value).splitlines()) == 1
    # What is taken over from an anchor does not stand there.
    run.write_text("x: &x {a: 1}\ny:\n  z: &z {<<: *x, a: 2}\n  w: {<<: *z, b: 3}\n")
    assert read_contents(base)["run.yaml"]["y"] == {"z": {"a": 2}, "w": {"a": 2, "b": 3}}
    run.write_text("? [a, b]\n: 1\n")  # a list is no key at all
    with pytest.raises(ConfigError, match=r"run.yaml: expected YAML, .* unhashable key"):
        read_contents(base)
    run.write_text(right)
    engine.write_text('{"a": {"b": 1, "c": 2, "b": 1}}')
    with pytest.raises(ConfigError, match=r"generator.json: .* the key 'b' twice in one object"):
        read_contents(base)
    engine.write_text('{"a": {"b": 1}, "c": {"b": 1}}')  # one in each is not twice
    read_contents(base)


def test_deepspeed_knows_every_key_that_an_engine_may_have() -> None:
    """It ignores what it does not know, so a key that it dropped would be silent."""

    def words(module: object) -> set[str]:
        return {value for value in vars(module).values() if isinstance(value, str)}

    known = words(deepspeed.runtime.constants) | words(checkpointing_config) | words(zero_config)
    known |= set(DeepSpeedMonitorConfig.model_fields)
    for model in (EngineConfig, ActivationCheckpointing):
        unknown = set(model.model_fields) - known
        assert unknown <= {"zero_optimization"}
    assert '"zero_optimization": {' in zero_config.ZERO_FORMAT


def _row(recipe: Recipe, size: str) -> list[str]:
    """What ds_configs/README.md says of a recipe, as far as its files say it."""
    engine = recipe.generator_engine
    enabled = [name for name in ("fp16", "bf16") if engine.get(name, {}).get("enabled")]
    per_device, times = (
        engine["train_micro_batch_size_per_gpu"],
        engine["gradient_accumulation_steps"],
    )
    memory = expect_memory(recipe, *GRIDS[size])
    total = memory.total / 2**30
    return [
        *(enabled or ["fp32"]),
        f"{per_device} x {times}",
        str(engine.get("zero_optimization", {}).get("stage", 0)),
        "on" if "activation_checkpointing" in engine else "off",
        f"{total:.1f}",
    ]


@pytest.mark.parametrize("folder", RECIPES, ids=lambda folder: folder.name)
def test_readme_says_what_the_files_say(folder: Path) -> None:
    lines = (DS_CONFIGS / "README.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"| `{folder.name}` |")]
    _, hardware, precision, batch, whole, zero, checkpointing, memory, *_ = (
        cell.strip() for cell in line.strip("|").split("|")
    )
    size = "demo" if folder.name in _AT_DEMO_SIZE else "paper"
    recipe = load_recipe(folder)
    assert [precision, batch, zero, checkpointing, memory] == _row(recipe, size)
    devices = int((re.search(r"\d+", hardware) or ["1"])[0])
    factors = [int(number) for number in batch.split(" x ")]
    assert int(whole) == devices * factors[0] * factors[1]

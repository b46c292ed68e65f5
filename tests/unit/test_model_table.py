"""What networks cost: by hand on small ones, adding up on large ones, and meta as real tensors."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from ganbert.cli import app
from ganbert.config import GRIDS, DiscriminatorConfig, GeneratorConfig
from ganbert.errors import ConfigError
from ganbert.model_table import (
    REST,
    Part,
    generator_parts,
    measure,
    measure_discriminator,
    measure_generator,
)
from ganbert.models.discriminators import DISCRIMINATORS, build_discriminator
from ganbert.models.generator import build_generator
from ganbert.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "ds_configs"
TINY = GRIDS["tiny"]


def test_convolution_by_hand() -> None:
    network = nn.Sequential(nn.Conv3d(2, 3, 3, padding=1, bias=False), nn.Conv3d(3, 1, 1))
    image = torch.zeros(1, 2, 4, 4, 4)
    first, rest = measure(network, [Part("first", ("0",))], [image])
    assert (first.name, rest.name) == ("first", REST)
    assert first.shape == (1, 3, 4, 4, 4)
    assert first.parameters == 2 * 3 * 27
    assert first.multiply_adds == 64 * 2 * 3 * 27
    assert first.kept_bytes == 4 * 2 * 64  # its input, float32
    assert rest.parameters == 3 + 1
    assert rest.multiply_adds == 64 * 3
    assert rest.kept_bytes == 4 * 3 * 64


def test_shared_weights_count_once() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    parts = [Part("first", ("0",)), Part("second", ("1",))]
    costs = measure(nn.Sequential(first, second), parts, [torch.zeros(1, 4)])
    assert [cost.parameters for cost in costs] == [16, 0, 0]
    assert [cost.multiply_adds for cost in costs] == [16, 16, 0]


def test_meta_counts_are_those_of_real_tensors() -> None:
    config = GeneratorConfig(channels=(4, 8))
    real = build_generator(config, *TINY)
    with torch.device("meta"):
        meta = build_generator(config, *TINY)
    counted = measure(real, generator_parts(real), [torch.zeros(2, 1, 32, 32, 32)])
    assert measure_generator(meta, 2) == counted


@pytest.mark.parametrize("recipe", ["demo", "paper"])
def test_generator_adds_up(recipe: str) -> None:
    config = load_recipe(RECIPES / recipe).run.generator
    with torch.device("meta"):
        generator = build_generator(config, *GRIDS["paper"])
    costs = measure_generator(generator, 1)
    assert sum(c.parameters for c in costs) == sum(p.numel() for p in generator.parameters())
    assert all(c.kept_checkpointed_bytes <= c.kept_bytes for c in costs)
    # The paper's sizes, and nothing that PET cannot show: no layer but the stem reads 256^3.
    assert costs[0].shape[2:] == (128, 128, 128)
    assert next(c for c in costs if c.name == "head").shape == (1, 2, 93, 76, 76)
    assert next(c for c in costs if c.name == REST).multiply_adds == 0


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_discriminator_adds_up(kind: str) -> None:
    config = DiscriminatorConfig.model_validate(
        {"kind": kind, "hidden_size": 32, "num_layers": 3, "num_heads": 2, "intermediate_size": 64}
    )
    with torch.device("meta"):
        discriminator = build_discriminator(config, *TINY)
    assert discriminator is not None
    costs = {cost.name: cost for cost in measure_discriminator(discriminator, *TINY, 1)}
    total = sum(p.numel() for p in discriminator.parameters())
    assert sum(c.parameters for c in costs.values()) == total
    assert costs[REST].parameters == 0
    assert costs[REST].multiply_adds == 0
    assert ("PatchGAN" in costs) == (kind != "bert")
    if "bert" in kind:
        layer = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 2 * 2 * 32
        assert costs["3 layers"].parameters == 3 * layer
        assert costs["3 layers"].kept_checkpointed_bytes == 3 * 2 * 1027 * 32 * 4
        assert costs["3 layers"].kept_bytes > 10 * costs["3 layers"].kept_checkpointed_bytes


def test_bert_base_has_its_known_size() -> None:
    # 12 x 7,087,872 in the layers, whatever the vocabulary.
    config = load_recipe(RECIPES / "paper").run.discriminator
    with torch.device("meta"):
        discriminator = build_discriminator(config, *TINY)
    assert discriminator is not None
    costs = {cost.name: cost for cost in measure_discriminator(discriminator, *TINY, 1)}
    assert costs["12 layers"].parameters == 12 * 7_087_872


@pytest.mark.parametrize("recipe", ["demo", "l1"])
def test_command_prints_a_table(recipe: str) -> None:
    result = CliRunner().invoke(
        app, ["model", str(RECIPES / recipe), "--size", "demo"], env={"COLUMNS": "80"}
    )
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert "in all" in result.output
    assert ("Discriminator" in result.output) == (recipe == "demo")


def _mib(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"MiB": 1, "GiB": 1024}[unit]


@pytest.mark.parametrize(("recipe", "size"), [("demo", "tiny"), ("l1", "tiny"), ("paper", "paper")])
def test_expected_memory_can_be_added_up_from_what_is_printed(recipe: str, size: str) -> None:
    options = ["model", str(RECIPES / recipe), "--size", size, "--micro-batch", "2"]
    output = " ".join(CliRunner().invoke(app, options, env={"COLUMNS": "80"}).output.split())
    tables, expected = output.split("Expected on each device, micro-batch 2: ")
    total, *parts = map(_mib, re.findall(r"[\d.]+ [MG]iB", expected))
    assert total > 1  # nothing rounds to 0.0 GiB
    assert sum(parts) == pytest.approx(total, abs=0.01 * 1024 if "GiB" in expected else 0.2)
    (written,) = re.findall(r"for ([\d,x+ ]+) bytes", expected)
    states = sum(
        int(number.replace(",", "")) * int(each)
        for number, each in (product.split(" x ") for product in written.split(" + "))
    )
    assert states / 2**20 == pytest.approx(parts[0], rel=0.01)
    # "in all" ends with parameters, mult-adds, MiB kept, MiB kept with checkpointing.
    in_all = re.findall(r"in all ([\d,]+) [\d.,]+ ([\d.,]+) ([\d.,]+)", tables)
    assert [row[0] for row in in_all] == [p.split(" x ")[0] for p in written.split(" + ")]
    halved = "half of MiB ckpt" in expected
    kept = sum(float(row[2 if halved else 1].replace(",", "")) for row in in_all)
    assert parts[1] == pytest.approx(kept / (2 if halved else 1), abs=0.2)


def test_engines_that_disagree_are_refused_here_too(tmp_path: Path) -> None:
    """Before a Job with 64 GPUs says so: accumulation stands in two files."""
    recipe = shutil.copytree(RECIPES / "paper", tmp_path / "mine")
    engine = json.loads((recipe / "generator.json").read_text())
    engine["gradient_accumulation_steps"] = 4
    (recipe / "generator.json").write_text(json.dumps(engine))
    done = CliRunner().invoke(app, ["model", str(recipe)])
    assert isinstance(done.exception, ConfigError)
    assert "expected one 'gradient_accumulation_steps' in both" in str(done.exception)

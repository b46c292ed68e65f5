"""Recipes are strict: what is mistyped is an error that names the nearest valid key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from ganbert.config import (
    DEFAULTS_WRITTEN,
    DEMO_MRI_GRID,
    GRIDS,
    PAPER_MRI_GRID,
    PAPER_PET_GRID,
    DiscriminatorConfig,
    RunConfig,
)
from ganbert.errors import ConfigError
from ganbert.recipe import load_recipe
from ganbert.strict import read_strictly

TABLE_1 = ("l1", "pix2pix_tanh", "pix2pix", "ganbert_literal", "demo", "ganbert_cnn")
RECIPES = sorted(p.parent for p in (Path(__file__).parents[2] / "ds_configs").glob("*/run.yaml"))


def load_run_config(path: Path) -> RunConfig:
    """The settings of a recipe whose engines say nothing."""
    for engine in ("generator.json", "discriminator.json"):
        path.with_name(engine).write_text("{}")
    return load_recipe(path).run


def write_run(folder: Path, content: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("folder", RECIPES, ids=lambda folder: folder.name)
def test_every_recipe_loads(folder: Path) -> None:
    recipe = load_recipe(folder)
    assert recipe == load_recipe(folder / "run.yaml")
    for engine in (recipe.generator_engine, recipe.discriminator_engine):
        assert engine["train_micro_batch_size_per_gpu"] > 0
        assert "optimizer" in engine


@pytest.mark.parametrize("folder", RECIPES, ids=lambda folder: folder.name)
def test_both_engines_count_the_same_samples(folder: Path) -> None:
    recipe = load_recipe(folder)
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert recipe.generator_engine.get(key) == recipe.discriminator_engine.get(key)


def test_there_are_recipes() -> None:
    assert {"demo", "paper"} <= {folder.name for folder in RECIPES}


def test_smallest_run_config_takes_the_papers_values(tmp_path: Path) -> None:
    run = load_run_config(write_run(tmp_path, {"max_steps": 1}))
    assert (run.losses.nsp, run.losses.mlm, run.losses.l1) == (20.0, 1.0, 20.0)
    assert run.intensity_ratio == 0.1
    assert run.discriminator.masked_fraction_pet == 0.25


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"max_steps": 1, "sead": 3}, "'sead'; did you mean 'seed'"),
        ({"max_steps": 1, "losses": {"l2": 1.0}}, "'losses.l2'; did you mean 'l1'"),
        ({"max_steps": 1, "zzzzzz": 3}, "'zzzzzz'; valid: seed, max_steps"),
        ({}, "max_steps: a value, found nothing"),
        ({"max_steps": 0}, "max_steps: a whole number above 0, found 0"),
        ({"max_steps": "many"}, "max_steps: .*, found 'many'"),
        ({"max_steps": 1, "losses": {"nsp": -1}}, "losses.nsp: a number of at least 0, found -1"),
        (
            {"max_steps": 1, "intensity_ratio": "guess"},
            "intensity_ratio: a number or 'auto', found 'guess'",
        ),
        (
            {"max_steps": "300"},
            "max_steps: a whole number above 0, found '300'; write 300, without quotes",
        ),
        ({"max_steps": 3.0}, "max_steps: a whole number above 0, found 3.0"),
        ({"max_steps": 1, "seed": True}, "seed: a whole number .*, found true"),
        ({"max_steps": 1, "seed": None}, "seed: a whole number .*, found null"),
        ({"max_steps": 1, "generator": {"channels": ["8", 16]}}, "channels.0: .*, found '8'"),
        ({"max_steps": 1, "generator": {"channels": [8, 16.0]}}, "channels.1: .*, found 16.0"),
        ({"max_steps": 1, "losses": {"l1": "1e-4"}}, "losses.l1: .*; write 1.000e-04: 1e-4"),
        ({"max_steps": 1, "discriminator": {"kind": "vit"}}, "discriminator.kind: .*'bert'"),
        (
            {"max_steps": 1, "losses": {"l1": 0, "max_adversarial_ratio": 0.1}},
            "losses: l1 above 0, or max_adversarial_ratio null: it is a share of L1's gradient",
        ),
        (
            {"max_steps": 1, "node_timeout_seconds": 6},
            "node_timeout_seconds: a whole number of at least 7, found 6",
        ),
        ({"max_steps": 1, "log_samples": "yes"}, "log_samples: true or false, found 'yes'"),
        (["max_steps"], "expected a mapping, found list"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_run_config(write_run(tmp_path, content))
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path / "run.yaml") in str(caught.value)


def test_yaml_may_write_a_list_for_a_tuple_and_an_integer_for_a_float(tmp_path: Path) -> None:
    content = {"max_steps": 1, "losses": {"nsp": 20}, "generator": {"channels": [4, 8]}}
    run = load_run_config(write_run(tmp_path, content))
    assert run.generator.channels == (4, 8)
    assert run.losses.nsp == 20.0
    assert isinstance(run.losses.nsp, float)


def test_yaml_1_1_reads_a_power_without_a_point_as_text(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("max_steps: 1\nintensity_ratio: 1e-2\n")
    with pytest.raises(ConfigError, match="without a point is text in YAML"):
        load_run_config(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text("max_steps: 1\nintensity_ratio: 1.0e-2\n")
    assert load_run_config(tmp_path / "run.yaml").intensity_ratio == 0.01


@pytest.mark.parametrize("name", ["run.yaml", "generator.json", "discriminator.json"])
def test_missing_file_of_a_recipe_is_named(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, {"max_steps": 1})
    for engine in ("generator.json", "discriminator.json"):
        (tmp_path / engine).write_text("{}")
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}: expected a readable file"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "JSON"), (json.dumps([1]), "found list")])
def test_broken_engine_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_run(tmp_path, {"max_steps": 1})
    (tmp_path / "generator.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path)


@pytest.mark.parametrize("text", ["a: b: c", "\tx"])
def test_broken_yaml_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match="expected YAML") as caught:
        load_run_config(tmp_path / "run.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_grids_cover_the_same_field_of_view_at_every_size() -> None:
    assert PAPER_MRI_GRID.extent_mm == DEMO_MRI_GRID.extent_mm == (256.0, 256.0, 256.0)
    assert PAPER_PET_GRID.extent_mm == (186.0, 152.0, 152.0)
    for mri, pet in GRIDS.values():
        assert all(m >= p for m, p in zip(mri.extent_mm, pet.extent_mm, strict=True))


def test_generators_of_table_1_train_alike() -> None:
    recipes = [load_recipe(RECIPES[0].parent / name) for name in TABLE_1]
    for recipe in recipes:
        # The adversary's engine is a part of the method.
        assert recipe.generator_engine == recipes[0].generator_engine
        shared = {"seed", "max_steps", "intensity_ratio", "checkpoint_every"}
        assert recipe.run.model_dump(include=shared) == recipes[0].run.model_dump(include=shared)
        assert recipe.run.generator.channels == recipes[0].run.generator.channels


@pytest.mark.parametrize("noisy", ["dropout", "attention_dropout", "value_noise"])
def test_r1_wants_two_passes_that_differ_in_its_noise_alone(noisy: str) -> None:
    quiet = {"dropout": 0.0, "attention_dropout": 0.0, "value_noise": 0.0}
    content: dict[str, Any] = {"max_steps": 1, "discriminator": quiet, "losses": {"r1": 1.0}}
    read_strictly("run.yaml", content, RunConfig)
    with pytest.raises(ConfigError, match=f"expected {noisy} of 0, or no r1: .* in r1_sigma alone"):
        read_strictly("run.yaml", content | {"discriminator": quiet | {noisy: 0.1}}, RunConfig)


@pytest.mark.parametrize(
    ("kind", "section", "name", "value"),
    [
        ("none", "losses", "nsp", 1.0),
        ("none", "losses", "mlm", 10.0),
        # The defaults, written by the user: they weigh as little as any other number.
        ("none", "losses", "nsp", 20.0),
        ("none", "losses", "mlm", 1),
        ("none", "losses", "patch", 1.0),
        ("patchgan", "losses", "nsp", 20),
        ("bert", "losses", "patch", 1),
        ("patchgan", "losses", "nsp", 1.0),
        ("bert", "losses", "patch", 5.0),
        ("none", "losses", "label_smoothing", 0.1),
        ("none", "losses", "r1", 10.0),
        ("none", "losses", "reweight", True),
        ("none", "losses", "lazy_above_accuracy", 0.7),
        ("none", "losses", "max_adversarial_ratio", 0.1),
        ("none", "losses", "adversary_warmup_steps", 10),
        ("patchgan", "discriminator", "value_noise", 0.1),
        ("patchgan", "discriminator", "dropout_for_generator", False),
        ("bert", "discriminator", "spectral_norm", True),
    ],
)
def test_reins_that_hold_nothing_are_refused(
    kind: str, section: str, name: str, value: object
) -> None:
    quiet = {"dropout": 0.0} if name == "r1" else {}
    content: dict[str, Any] = {"max_steps": 1, "discriminator": {"kind": kind} | quiet}
    read_strictly("run.yaml", content, RunConfig)
    content.setdefault(section, {})[name] = value
    # It reads as a sentence: what was expected is a thing.
    sentence = rf"expected no {name}, or discriminator.kind .*: with {kind} {name} has nothing to"
    with pytest.raises(ConfigError, match=sentence):
        read_strictly("run.yaml", content, RunConfig)
    content["discriminator"]["kind"] = "bert_patchgan"
    read_strictly("run.yaml", content, RunConfig)


def test_weights_that_were_filled_in_are_no_mistake() -> None:
    written = RunConfig(max_steps=1, discriminator=DiscriminatorConfig(kind="none")).model_dump()
    assert written["losses"]["nsp"] == 20
    RunConfig.model_validate(written, context={DEFAULTS_WRITTEN: True})
    with pytest.raises(ValidationError, match="nsp has nothing to act on"):
        RunConfig.model_validate(written)


BERT, CNN, BOTH, NONE = ({"kind": kind} for kind in ("bert", "patchgan", "bert_patchgan", "none"))


@pytest.mark.parametrize(
    ("discriminator", "losses", "message"),
    [
        (BERT, {"nsp": 0, "mlm": 0}, "losses.nsp or losses.mlm above 0, or .*kind none: BERT"),
        (BOTH, {"nsp": 0, "mlm": 0}, "losses.nsp or losses.mlm above 0, or .*kind patchgan: BERT"),
        (CNN, {"patch": 0}, "losses.patch above 0, or .*kind none: the CNN"),
        (BOTH, {"patch": 0}, "losses.patch above 0, or .*kind bert: the CNN"),
        (NONE, {"l1": 0}, "losses.l1 above 0: the generator has nothing else"),
        (BERT | {"gradient": "none"}, {"l1": 0}, "losses.l1 above 0: the generator has nothing"),
        (BERT, {"nsp": 0, "lazy_above_accuracy": 0.8}, "losses.nsp above 0, or no lazy_above_acc"),
        (BERT, {"nsp": 0, "label_smoothing": 0.1}, "losses.nsp above 0, or no label_smoothing"),
        (BERT, {"nsp": 0, "reweight": True}, "losses.nsp above 0, or no reweight"),
        (BERT | {"dropout": 0.0, "dropout_for_generator": False}, {}, "no dropout to leave out"),
    ],
)
def test_settings_without_any_effect_are_refused(
    discriminator: dict[str, Any], losses: dict[str, Any], message: str
) -> None:
    content = {"max_steps": 1, "discriminator": discriminator, "losses": losses}
    with pytest.raises(ConfigError, match=message) as caught:
        read_strictly("run.yaml", content, RunConfig)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("discriminator", "losses"),
    [
        (BERT, {"nsp": 0}),
        (BERT, {"mlm": 0, "lazy_above_accuracy": 0.8}),
        (BERT, {"l1": 0}),
        (BERT | {"gradient": "none"}, {}),  # the ablation
        (BOTH, {"nsp": 0, "lazy_above_accuracy": 0.8, "label_smoothing": 0.1}),  # of the CNN
        (BOTH | {"gradient": "none"}, {"l1": 0}),
        (NONE, {"nsp": 0, "mlm": 0, "patch": 0}),
        (CNN, {"nsp": 0, "mlm": 0}),
        (BERT | {"attention_dropout": 0.1, "dropout": 0, "dropout_for_generator": False}, {}),
    ],
)
def test_what_still_has_an_effect_is_taken(
    discriminator: dict[str, Any], losses: dict[str, Any]
) -> None:
    content = {"max_steps": 1, "discriminator": discriminator, "losses": losses}
    taken = read_strictly("run.yaml", content, RunConfig)
    assert {name: getattr(taken.losses, name) for name in losses} == losses


@pytest.mark.parametrize(
    ("section", "name"),
    [
        *(
            ("losses", name)
            for name in ("nsp", "mlm", "l1", "patch", "max_adversarial_ratio", "r1")
        ),
        ("discriminator", "value_noise"),
    ],
)
def test_infinity_is_no_setting(section: str, name: str) -> None:
    content = {"max_steps": 1, section: {name: float("inf")}}
    with pytest.raises(ConfigError, match=rf"{section}.{name}: .*finite"):
        read_strictly("run.yaml", content, RunConfig)


def test_a_seed_that_torch_cannot_take_is_refused() -> None:
    read_strictly("run.yaml", {"max_steps": 1, "seed": 2**63 - 1}, RunConfig)
    with pytest.raises(ConfigError, match="seed: "):
        read_strictly("run.yaml", {"max_steps": 1, "seed": 2**63}, RunConfig)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ({"flip": 2}, "augmentation.flip: a number from 0 to 1, found 2; mend"),
        ({"flip": "half"}, "augmentation.flip: a number from 0 to 1, found 'half'; mend"),
        ({"flip": None}, "augmentation.flip: a number from 0 to 1, found null; mend"),
        ({"rotation_deg": -1}, "augmentation.rotation_deg: a number from 0 to 180, found -1; mend"),
        ({"intensity": 1}, "augmentation.intensity: a number of at least 0 and below 1, found 1;"),
        ({"intensity": "1e-1"}, "number of at least 0 and below 1, found '1e-1'; write 1.000e-01:"),
        ({"flipp": 1}, "known keys only, found 'augmentation.flipp'; did you mean 'flip'?"),
        (0.5, "augmentation: a section of settings, found 0.5; mend 'augmentation'"),
        ([0.5], "augmentation: a section of settings, found"),
    ],
)
def test_augmentation_is_read_as_strictly(augmentation: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_strictly("run.yaml", {"max_steps": 1, "augmentation": augmentation}, RunConfig)
    assert message in str(caught.value)
    assert "Input" not in str(caught.value)
    assert "\n" not in str(caught.value)


def _leaves(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, (*above, name))
        yield (*above, name)


@pytest.mark.parametrize("setting", list(_leaves(RunConfig)), ids=".".join)
@pytest.mark.parametrize("value", [-1, 1.5, 1e300, "some", True, [], [-1], {"a": 1}])
def test_no_mistake_is_told_in_the_words_of_a_library(
    setting: tuple[str, ...], value: object
) -> None:
    content: Any = value
    for name in reversed(setting):
        content = {name: content}
    said = ""
    try:
        read_strictly("run.yaml", {"max_steps": 1} | content, RunConfig)
    except ConfigError as error:
        said = str(error)
    for words in ("Input", "Value error", "a valid", "pydantic", "Tuple", "should"):
        assert words not in said

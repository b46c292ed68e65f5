"""What a run refuses before any work, and how it describes itself."""

import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from ganbert import runs
from ganbert.config import GRIDS, ModelCard, RunConfig
from ganbert.data.index import (
    SCHEMA_VERSION,
    CachedImage,
    Index,
    Row,
    file_sha256,
    read_index,
    save_index,
)
from ganbert.errors import CheckpointError, ConfigError, DatasetError, OutputError
from ganbert.recipe import Recipe
from ganbert.run_folder import DESCRIPTION_NAME
from ganbert.runs import (
    Run,
    claim,
    describe_checkpoint,
    describe_run,
    facts_for_all_ranks,
    plan_run,
    write_description,
)

IMAGE = CachedImage(
    path="cache/none.nii",
    affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
    sha256="0" * 64,
    mean=1.0,
    std=1.0,
    minimum=0.0,
    maximum=2.0,
    p999=1.9,
)


def row(subject: str, **fields: Any) -> Row:
    usual: dict[str, Any] = {
        "subject": subject,
        "session": None,
        "tracer": "FDG",
        "unit": "SUVR",
        "split": "train",
        "frame_start_s": (1800.0, 2100.0),
        "frame_duration_s": (300.0, 300.0),
        "mri": IMAGE,
        "pet": IMAGE,
        "truth": None,
        "dseg": None,
        "sources": (),
    }
    return Row(**usual | fields)


def write_index(folder: Path, *rows: Row) -> Path:
    mri_grid, pet_grid = GRIDS["tiny"]
    index = Index(
        schema_version=SCHEMA_VERSION,
        mri_grid=mri_grid,
        pet_grid=pet_grid,
        intensity_ratio={"FDG": 0.02},
        rows=rows,
        versions={},
    )
    folder.mkdir(exist_ok=True)
    save_index(index, folder)
    return folder


def recipe(**run: Any) -> Recipe:
    config = RunConfig.model_validate({"max_steps": 5, **run})
    return Recipe(run=config, generator_engine={"steps": 1}, discriminator_engine={})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    test_row = row("03", split="test", tracer="AV45")  # of no concern to training
    return write_index(tmp_path / "data", row("01"), row("02"), test_row)


def plan(
    data: Path,
    given: Recipe,
    resume_from: Path | None = None,
    world_size: int = 1,
    tracer: str | None = None,
) -> Run:
    output = data.parent / "run"
    return plan_run(
        given,
        recipe_path=Path("ds_configs/demo"),
        data=data,
        read=read_index(data),
        output=output,
        resume_from=resume_from,
        world_size=world_size,
        tracer=tracer,
    )


def test_plan_knows_its_rows_and_what_they_were(data: Path) -> None:
    run = plan(data, recipe())
    assert [r.subject for r in run.training_rows] == ["01", "02"]
    assert run.tracer == "FDG"
    assert run.index_sha256 == file_sha256(data / "index.json")
    assert run.resume_from is None


@pytest.mark.parametrize(("asked", "expected"), [(0.1, 0.1), (0.5, 0.5), ("auto", 0.02)])
def test_auto_takes_the_ratio_that_prepare_suggests(
    data: Path, asked: float | str, expected: float
) -> None:
    assert plan(data, recipe(intensity_ratio=asked)).intensity_ratio == expected


def test_planning_writes_nothing(data: Path) -> None:
    plan(data, recipe())
    assert not (data.parent / "run").exists()


def test_folder_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="ganbert prepare"):
        plan(tmp_path, recipe())


def test_broken_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DatasetError, match="expected a valid index") as caught:
        plan(tmp_path, recipe())
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def two_tracers(tmp_path: Path) -> Path:
    """Subjects with one of two tracers, which differ in unit and frame timing, or both."""
    other: dict[str, Any] = {"tracer": "AV45", "unit": "SUV", "frame_start_s": (3000.0, 3300.0)}
    rows = (row("01", **other), row("01"), row("02", **other), row("03"), row("04"))
    return write_index(tmp_path / "data", *rows, row("05", **other, split="val"))


def test_of_two_tracers_one_must_be_named(two_tracers: Path) -> None:
    message = r"--tracer: expected one tracer to train on .*, found AV45, FDG; choose one with"
    with pytest.raises(ConfigError, match=message) as caught:
        plan(two_tracers, recipe())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("asked", "tracer", "subjects", "unit"),
    [("FDG", "FDG", ["01", "03", "04"], "SUVR"), ("florbetapir", "AV45", ["01", "02"], "SUV")],
)
def test_a_run_is_of_the_rows_of_its_tracer(
    asked: str, tracer: str, subjects: list[str], unit: str, two_tracers: Path
) -> None:
    run = plan(two_tracers, recipe(), tracer=asked)
    assert [r.subject for r in run.training_rows] == subjects
    assert (run.tracer, run.card(1)["unit"]) == (tracer, unit)
    assert run.card(1)["num_training_rows"] == len(subjects)
    assert describe_run(run, 1, "CPU")["tracer"] == tracer
    assert facts_for_all_ranks(run, 0)["tracer"] == tracer


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "FGD",
            r"--tracer: expected a tracer of .* \(AV45, FDG\), found 'FGD'; did you mean 'FDG'",
        ),
        ("AV1451", r"found 'AV1451'; did you mean 'AV45'\?"),
        ("water", r"found 'water'; valid: AV45, FDG"),
    ],
)
def test_a_tracer_that_is_not_there_is_named_with_those_that_are(
    asked: str, message: str, two_tracers: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(two_tracers, recipe(), tracer=asked)


def test_a_tracer_without_training_rows_is_refused(data: Path) -> None:
    with pytest.raises(DatasetError, match="expected training rows of AV45, found none"):
        plan(data, recipe(), tracer="AV45")


def test_a_run_goes_on_with_its_own_tracer_alone(two_tracers: Path) -> None:
    write_description(plan(two_tracers, recipe(), tracer="AV45"), 1, "CPU")
    checkpoint = two_tracers.parent / "run/checkpoints/step-00000005"
    assert plan(two_tracers, recipe(), checkpoint, tracer="av45").tracer == "AV45"
    message = "tracer as in the run that is resumed: AV45, found FDG; give the same --tracer"
    with pytest.raises(CheckpointError, match=message):
        plan(two_tracers, recipe(), checkpoint, tracer="FDG")


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"unit": "SUV"}, "FDG training rows of one unit, found SUV, SUVR"),
        (
            {"frame_start_s": (0.0, 9.0)},
            "FDG training rows of one frame timing, found other frames than .* in sub-0",
        ),
        (
            {"frame_duration_s": (300.0, 340.0)},
            "FDG training rows of one frame timing, found other frames than .* in sub-02",
        ),
    ],
)
def test_one_tracer_in_two_ways_is_refused(
    odd: dict[str, Any], message: str, tmp_path: Path
) -> None:
    usual = (row("01"), row("04"), row("05"))
    data = write_index(tmp_path / "data", *usual, row("02", **odd), row("03", tracer="AV45"))
    with pytest.raises(DatasetError, match=message):
        plan(data, recipe(), tracer="FDG")
    assert plan(data, recipe(intensity_ratio=0.1), tracer="AV45").tracer == "AV45"


def test_a_scan_that_was_begun_a_minute_late_is_of_the_same_timing(tmp_path: Path) -> None:
    late = {"frame_start_s": (1860.0, 2160.0), "frame_duration_s": (299.0, 301.0)}
    early = {"frame_start_s": (1750.0, 2050.0)}
    data = write_index(tmp_path / "data", row("01", **early), row("02"), row("03", **late))
    card = plan(data, recipe()).card(1, with_seen=False)
    assert card["frame_start_s"] == (1800, 2100)  # the median
    assert card["frame_duration_s"] == (300, 300)


def test_two_sites_whose_frames_do_not_overlap_are_not_of_one_timing(tmp_path: Path) -> None:
    long = {"frame_duration_s": (600.0, 600.0)}
    sites = ({"frame_start_s": (start, start + 600.0), **long} for start in (3000.0, 3600.0))
    rows = [row(f"{i}{j}", **site) for i, site in enumerate(sites) for j in range(10)]
    data = write_index(tmp_path / "data", *rows)
    # The median of an even number may be nobody's.
    message = r"frames than 3000 to 3600 s, 3600 to 4200 s \(the median\) in sub-10, .* and 7 more"
    with pytest.raises(DatasetError, match=message):
        plan(data, recipe())


@pytest.mark.parametrize(("start", "is_usual"), [(1875, True), (1725, True), (1880, False)])
def test_a_frame_of_the_same_timing_starts_within_a_quarter_of_it(
    start: float, is_usual: bool, tmp_path: Path
) -> None:
    shifted = row("03", frame_start_s=(start, start + 300.0))
    data = write_index(tmp_path / "data", row("01"), row("02"), shifted)
    if is_usual:
        assert plan(data, recipe()).tracer == "FDG"
    else:
        with pytest.raises(DatasetError, match=r"other frames than .* in sub-03"):
            plan(data, recipe())


def test_no_training_rows_are_refused(tmp_path: Path) -> None:
    data = write_index(tmp_path / "data", row("01", split="test"))
    with pytest.raises(DatasetError, match="expected training rows, found none"):
        plan(data, recipe())


def test_description_is_json_that_tells_runs_apart(data: Path) -> None:
    run = plan(data, recipe(seed=4))
    described = json.loads(json.dumps(describe_run(run, world_size=3, device="CPU")))
    assert described["recipe"]["run"]["seed"] == 4
    assert described["recipe"]["generator_engine"] == {"steps": 1}
    assert described["recipe_name"] == "demo"
    assert described["index_sha256"] == run.index_sha256
    assert (described["tracer"], described["unit"]) == ("FDG", "SUVR")
    assert described["world_size"] == 3
    assert {"torch", "deepspeed", "transformers"} <= described["versions"].keys()


def test_description_says_what_the_last_bits_depend_on(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    cpu = describe_run(plan(data, recipe()), world_size=1, device="CPU")["cpu"]
    assert isinstance(cpu, dict)
    assert cpu.pop("maker")
    assert cpu == {
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_cpu_isa": "AVX2",
        "mkl_cbwr": "COMPATIBLE",
        "threads": torch.get_num_threads(),
    }


def test_maker_of_the_cpu_is_named_where_the_kernel_names_it(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    assert runs._cpu_maker(file) == platform.machine()
    file.write_text("processor\t: 0\nBogoMIPS\t: 243.75\n")
    assert runs._cpu_maker(file) == platform.machine()
    file.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nprocessor\t: 1\n")
    assert runs._cpu_maker(file) == "AuthenticAMD"


def test_description_is_written_whole(data: Path) -> None:
    run = plan(data, recipe())
    write_description(run, 2, "CPU")
    assert [path.name for path in run.output.iterdir()] == [DESCRIPTION_NAME]
    assert json.loads((run.output / DESCRIPTION_NAME).read_text()) == describe_run(run, 2, "CPU")


@pytest.fixture
def checkpoint(data: Path) -> Path:
    write_description(plan(data, recipe()), 2, "CPU")
    return data.parent / "run" / "checkpoints" / "step-00000005"


def test_same_recipe_may_go_on(data: Path, checkpoint: Path) -> None:
    assert plan(data, recipe(), checkpoint).resume_from == checkpoint


@pytest.mark.parametrize(
    "change", [{"max_steps": 50}, {"losses": {"nsp": 1.0}}, {"checkpoint_every": 7}]
)
def test_what_is_no_network_may_change(
    data: Path, checkpoint: Path, change: dict[str, Any]
) -> None:
    assert plan(data, recipe(**change), checkpoint).resume_from == checkpoint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"generator": {"channels": [4, 8]}},
            r"generator as in the run .* \[16, 32, 64, 128, 256\], found channels \[4, 8\]",
        ),
        ({"generator": {"activation": "tanh"}}, "activation tanhshrink, found activation tanh"),
        (
            {"discriminator": {"num_layers": 1}},
            "discriminator as in the run .* num_layers 12, found num_layers 1",
        ),
        ({"intensity_ratio": 0.2}, "intensity_ratio as in the run that is resumed: 0.1, found 0.2"),
        (
            {"intensity_ratio": "auto"},
            "intensity_ratio as in the run that is resumed: 0.1, found 0.02",
        ),
    ],
)
def test_other_networks_or_units_may_not_go_on(
    data: Path, checkpoint: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        plan(data, recipe(**change), checkpoint)


def test_run_is_held_by_one_training(tmp_path: Path) -> None:
    with claim(tmp_path / "run"):
        with pytest.raises(OutputError, match="another process that holds it"):
            with claim(tmp_path / "run"):
                pass
    with claim(tmp_path / "run"):
        pass


def test_run_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/run: expected a place that can be written"):
        with claim(tmp_path / "file" / "run"):
            pass


def test_ratio_far_from_the_suggested_one_is_said(data: Path) -> None:
    assert plan(data, recipe(intensity_ratio="auto")).remarks() == []
    assert plan(data, recipe(intensity_ratio=0.04)).remarks() == []
    (warning,) = plan(data, recipe(intensity_ratio=0.1)).remarks()
    assert "0.1 is far from the 0.02" in warning
    assert "crowd into few ids" in warning
    (warning,) = plan(data, recipe(intensity_ratio=0.001)).remarks()
    assert "overflow into 500 ids" in warning


def test_generator_that_hears_nothing_from_bert_is_said(data: Path) -> None:
    deaf = recipe(intensity_ratio="auto", discriminator={"gradient": "none"})
    (warning,) = plan(data, deaf).remarks()
    assert warning.startswith("warning: discriminator.gradient none: ")
    assert "\n" not in warning


def engine(lr: float, **more: Any) -> dict[str, Any]:
    adam = {"type": "Adam", "params": {"lr": lr, "betas": [0.9, 0.999], "torch_adam": True}}
    return {"optimizer": adam} | more


def with_engines(of_g: dict[str, Any], of_d: dict[str, Any], **run: Any) -> Recipe:
    engines = {"generator_engine": of_g, "discriminator_engine": of_d}
    return recipe(intensity_ratio="auto", **run).model_copy(update=engines)


def resumed(data: Path, before: Recipe, now: Recipe, world_size: int = 2) -> Run:
    write_description(plan(data, before), 2, "CPU")
    return plan(data, now, data.parent / "run/checkpoints/step-00000005", world_size)


def test_other_settings_of_a_resumed_run_are_said_in_one_line(data: Path) -> None:
    before = with_engines(engine(1e-3), engine(1e-4), losses={"nsp": 20})
    now = with_engines(
        engine(1e-3, gradient_clipping=1.0),
        engine(5e-4),
        losses={"nsp": 1, "max_adversarial_ratio": 3.0},
        max_steps=9,
        checkpoint_every=3,  # teaches nothing
        validation_subjects=2,  # neither, but the best checkpoint is known by them
    )
    run = resumed(data, before, now)
    assert run.remarks() == [
        "resumed with other settings: max_steps 5 -> 9, validation_subjects 8 -> 2, "
        "losses.nsp 20.0 -> 1.0, "
        "losses.max_adversarial_ratio unset -> 3.0, generator.json gradient_clipping unset -> 1.0, "
        "discriminator.json optimizer.params.lr 0.0001 -> 0.0005"
    ]


def test_nothing_is_said_where_nothing_changed(data: Path) -> None:
    same = with_engines(engine(1e-3), engine(1e-4))
    run = resumed(data, same, same)
    assert run.remarks() == []
    assert describe_run(run, 2, "CPU")["changes"] == []
    # The adversary's file is read and not used.
    alone = {"discriminator": {"kind": "none"}}
    before, now = (with_engines(engine(1e-3), engine(lr), **alone) for lr in (1e-3, 5e-4))
    assert resumed(data, before, now).remarks() == []


def test_other_number_of_ranks_is_said(data: Path) -> None:
    same = with_engines(engine(1e-3), engine(1e-4))
    (remark,) = resumed(data, same, same, world_size=1).remarks()
    assert remark == "resumed with other settings: number of ranks 2 -> 1"


def test_description_remembers_all_changes(data: Path) -> None:
    recipes = [with_engines(engine(1e-3), engine(1e-4), losses={"nsp": n}) for n in (20, 5, 1)]
    run = resumed(data, recipes[0], recipes[1])
    write_description(run, 2, "CPU")
    run = plan(data, recipes[2], data.parent / "run/checkpoints/step-00000010", 2)
    write_description(run, 2, "CPU")
    assert json.loads((run.output / DESCRIPTION_NAME).read_text())["changes"] == [
        {"resumed_from": "step-00000005", "settings": {"losses.nsp": [20.0, 5.0]}},
        {"resumed_from": "step-00000010", "settings": {"losses.nsp": [5.0, 1.0]}},
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"type": "SGD", "params": {"lr": 1e-3}}}, "optimizer as .* found generator"),
        (
            {"scheduler": {"type": "WarmupLR"}},
            "without a schedule, found generator with a schedule",
        ),
    ],
)
def test_optimisers_that_cannot_use_the_state_may_not_go_on(
    data: Path, change: dict[str, Any], message: str
) -> None:
    before = with_engines(engine(1e-3), engine(1e-3))
    with pytest.raises(CheckpointError, match=message):
        resumed(data, before, with_engines(engine(1e-3) | change, engine(1e-3)))


def engines(stage: int = 0, **precision: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage}} | precision


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (engines(stage=1), "zero_optimization.stage .*: generator 0, discriminator 0, found"),
        (engines(bf16={"enabled": True}), "precision .* found generator bf16"),
    ],
)
def test_engines_that_cannot_load_the_checkpoint_may_not_go_on(
    data: Path, checkpoint: Path, engine: dict[str, Any], message: str
) -> None:
    given = recipe().model_copy(update={"generator_engine": engine, "discriminator_engine": engine})
    with pytest.raises(CheckpointError, match=message):
        plan(data, given, checkpoint)


def test_order_of_the_optimisers_state_ties_a_run_to_its_ranks(data: Path) -> None:
    plain, shuffled = (
        with_engines(*2 * [engine(1e-3, zero_optimization={"stage": 1} | more)])
        for more in ({}, {"round_robin_gradients": True})
    )
    assert resumed(data, plain, plain, world_size=4).changed == {"number of ranks": [2, 4]}
    assert not resumed(data, shuffled, shuffled, world_size=2).changed
    with pytest.raises(CheckpointError, match=r"number of ranks as in the run .*: 2, found 4"):
        resumed(data, shuffled, shuffled, world_size=4)
    # Read in another order, moments would belong to other weights.
    for before, now in ((plain, shuffled), (shuffled, plain)):
        with pytest.raises(CheckpointError, match="round_robin_gradients as in the run"):
            resumed(data, before, now, world_size=2)


def test_checkpoint_says_what_it_is_of(data: Path) -> None:
    run = plan(data, recipe(intensity_ratio="auto"))
    described = json.loads(json.dumps(describe_checkpoint(run, 2, "CPU", step=5, samples_seen=3)))
    assert described["epoch"] == 1.5
    assert described["versions"]["deepspeed"]
    assert described["recipe"] == run.recipe.model_dump(mode="json")
    assert ModelCard(**described["card"], weights_sha256="0") == ModelCard(
        **run.card(5, with_seen=False), weights_sha256="0"
    )

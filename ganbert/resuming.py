"""What a resumed run may change against the run before it, and what it says of that.

Weights, the optimisers' memory and the counters come from the checkpoint: what they depend on must
be as it was. Weights of losses, learning rates and the like may change: the new ones hold from the
next step on, and are announced and recorded.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ganbert.config import DEFAULTS_WRITTEN, DiscriminatorConfig, GeneratorConfig, RunConfig
from ganbert.errors import CheckpointError

# Settings of an optimiser that need no memory of other steps; `engines` puts them in force.
TUNABLE = ("lr", "betas", "eps", "weight_decay")
# What is refused elsewhere if it changes, and what neither teaches a network nor judges one.
_RUN_SILENT = (
    "seed",
    "intensity_ratio",
    "generator",
    "discriminator",
    "checkpoint_every",
    "keep_checkpoints",
    "metrics_port",
    "log_samples",
    "node_timeout_seconds",
    "straggler_ratio",
)
_ENGINE_SILENT = (
    "activation_checkpointing",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "tensorboard",
    "wandb",
)
_RESTORE = {
    "tracer": "give the same --tracer, or another --output",
    "number of ranks": "start as many ranks again, or give another --output",
}
Description = Mapping[str, Any]


def check_resumable(run: Path, before: Description, now: Description) -> None:
    """Refuse to resume what the checkpoint does not hold, or cannot be loaded into.

    Parameters
    ----------
    before, now : descriptions of the run, as `run.json` has them

    Raises
    ------
    CheckpointError
        If tracer, generator, discriminator, intensity ratio, ZeRO stages, precisions, the
        optimisers (but for `TUNABLE` settings) or whether there is a schedule changed, or the
        number of ranks did while `round_robin_gradients` puts the optimiser's state into an order
        that depends on it.
    """
    both = (before["recipe"], now["recipe"])
    facts = {
        "tracer": [d["tracer"] for d in (before, now)],
        "generator": [_section(GeneratorConfig, r["run"]["generator"]) for r in both],
        "discriminator": [_section(DiscriminatorConfig, r["run"]["discriminator"]) for r in both],
        "intensity_ratio": [d["intensity_ratio"] for d in (before, now)],
        "zero_optimization.stage": [_zero_stages(r) for r in both],
        "precision": [_precisions(r) for r in both],
        "optimizer": [_optimizers(r) for r in both],
        "scheduler": [_schedules(r) for r in both],
    }
    shuffled = [_has_shuffled_parts(recipe) for recipe in both]
    facts["round_robin_gradients"] = shuffled
    if any(shuffled):
        facts["number of ranks"] = [d.get("world_size") for d in (before, now)]
    for name, (old, new) in facts.items():
        if old != new:
            raise CheckpointError(
                run,
                expected=f"{name} as in the run that is resumed: {_difference(old, new)}",
                found=_difference(new, old),
                remedy=_RESTORE.get(name, "restore the recipe, or give another --output"),
            )


def changed_settings(before: Description, now: Description) -> dict[str, list[Any]]:
    """Settings that teach or judge the networks differently than before: [old, new] by name.

    Parameters
    ----------
    before, now : descriptions of the run, as `run.json` has them

    Returns
    -------
    Names are those of run.yaml, or have the engine's file before them. A setting that is not there
    is None.
    """
    old, new = dict(_settings(before)), dict(_settings(now))
    return {
        name: [old.get(name), new.get(name)]
        for name in (*new, *(name for name in old if name not in new))
        if old.get(name) != new.get(name)
    }


def announce(changed: Mapping[str, list[Any]]) -> str:
    """Say what changed, in one line."""
    words = [f"{name} {_word(old)} -> {_word(new)}" for name, (old, new) in changed.items()]
    return f"resumed with other settings: {', '.join(words)}"


def _word(value: object) -> str:
    return "unset" if value is None else str(value)


def _settings(description: Description) -> Iterator[tuple[str, Any]]:
    recipe = description["recipe"]
    run = _section(RunConfig, recipe["run"])
    yield from _flat({k: v for k, v in run.items() if k not in _RUN_SILENT})
    for name, engine in _engines(recipe).items():
        told = {k: v for k, v in engine.items() if k not in _ENGINE_SILENT}
        yield from _flat(told, f"{name}.json ")
    yield "number of ranks", description.get("world_size")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _section(model: type[BaseModel], written: dict[str, Any]) -> dict[str, Any]:
    """Settings of a section; keys that an older version did not write have their defaults."""
    try:
        section = model.model_validate(written, context={DEFAULTS_WRITTEN: True})
        return section.model_dump(mode="json")
    except ValidationError:
        return written


def _engines(recipe: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Configurations of the engines that the recipe uses."""
    engines = {"generator": recipe["generator_engine"]}
    if recipe["run"]["discriminator"].get("kind") != "none":
        engines["discriminator"] = recipe["discriminator_engine"]
    return engines


def _zero_stages(recipe: Mapping[str, Any]) -> dict[str, int]:
    return {n: e.get("zero_optimization", {}).get("stage", 0) for n, e in _engines(recipe).items()}


def _has_shuffled_parts(recipe: Mapping[str, Any]) -> bool:
    zeros = [engine.get("zero_optimization", {}) for engine in _engines(recipe).values()]
    return any(zero.get("stage") and zero.get("round_robin_gradients") for zero in zeros)


def _precisions(recipe: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: next((p for p in ("fp16", "bf16") if e.get(p, {}).get("enabled")), "fp32")
        for name, e in _engines(recipe).items()
    }


def _optimizers(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What the optimiser's state depends on; another one could not use it."""
    optimizers = {}
    for name, engine in _engines(recipe).items():
        config = engine.get("optimizer", {})
        fixed = {k: v for k, v in config.get("params", {}).items() if k not in TUNABLE}
        words = [str(config.get("type")), *(f"{k}={v}" for k, v in sorted(fixed.items()))]
        optimizers[name] = " ".join(words)
    return optimizers


def _schedules(recipe: Mapping[str, Any]) -> dict[str, str]:
    # Of another schedule the position alone would be taken, which is what one wants; from none at
    # all DeepSpeed reads a position that is not there.
    return {
        name: "with a schedule" if "scheduler" in engine else "without a schedule"
        for name, engine in _engines(recipe).items()
    }


def _difference(of: object, other: object) -> str:
    if not isinstance(of, Mapping) or not isinstance(other, Mapping):
        return str(of)
    return ", ".join(f"{k} {v}" for k, v in of.items() if v != other.get(k)) or "nothing else"

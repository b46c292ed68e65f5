"""Configuration that means what it says: strict models, and their mistakes in one line.

An unknown key is an error that names the nearest valid one, because a mistyped key that silently
falls back to a default costs a training run.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ganbert.errors import ConfigError

Section = TypeVar("Section", bound=BaseModel)
# Pydantic's names of what is wrong, and ours of what is expected.
_NOT_A_NUMBER = ("int_type", "int_from_float", "float_type")
_OUT_OF_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
_SIGNS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
_KINDS = {
    "missing": "a value",
    "model_type": "a section of settings",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "too_short": "a list that is not empty",
    "finite_number": "a finite number",
}


class Strict(BaseModel):
    """Base of every configuration section: immutable, no unknown keys.

    Files are read through `read_strictly`, which turns no text, truth value or fraction into a
    number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that was probably meant, in any case; None if none comes near.

    >>> nearest("FRONTL", ["frontal", "pons"]), nearest("xyz", ["frontal", "pons"])
    ('frontal', None)
    """
    by_folded = {each.casefold(): each for each in valid}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[near[0]] if near else None


def nearest_remedy(name: str, valid: list[str]) -> str:
    """Say which valid name was probably meant, or list them all."""
    near = nearest(name, valid)
    return f"did you mean '{near}'?" if near else f"valid: {', '.join(valid)}"


def _section(model: type[BaseModel], name: object) -> type[BaseModel] | None:
    """Return the section of that name, or None where a value stands."""
    field = model.model_fields.get(str(name))
    kind: Any = None if field is None else field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _name_of(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Dotted name of a setting; what pydantic appends to tell the types of a union is left out."""
    parts: list[str] = []
    section: type[BaseModel] | None = model
    for part in location:
        if section is None and isinstance(part, str):
            break
        parts.append(str(part))
        section = None if section is None else _section(section, part)
    return ".".join(parts)


def _unknown_key(
    where: object, location: tuple[int | str, ...], model: type[BaseModel]
) -> ConfigError:
    section: type[BaseModel] = model
    for part in location[:-1]:
        section = _section(section, part) or section
    remedy = nearest_remedy(str(location[-1]), list(section.model_fields))
    name = ".".join(map(str, location))
    return ConfigError(where, expected="known keys only", found=f"'{name}'", remedy=remedy)


def _mend(name: str, value: object) -> str:
    if not isinstance(value, str):
        return f"mend '{name}'" if name else "mend the file"
    try:
        number = float(value)
    except ValueError:
        return f"mend '{name}'"
    if number.is_integer():
        return f"write {number:.0f}, without quotes"
    # YAML 1.1 takes 1e-4 for text: it wants a point.
    return f"write {number:.3e}: 1e-4 without a point is text in YAML, and so is what has quotes"


def _field_of(location: tuple[int | str, ...], model: type[BaseModel]) -> FieldInfo | None:
    """Return what is known of a setting; None within a list, and for a whole file."""
    section, field = model, None
    for part in location:
        field = section.model_fields.get(str(part))
        section = _section(section, part) or section
    return field


def _in_words(problem: ErrorDetails, field: FieldInfo | None) -> str:
    """Say what a setting must be; pydantic names the one bound that is broken."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in _NOT_A_NUMBER or kind in _OUT_OF_BOUNDS:
        both = [(b, getattr(m, b, None)) for m in (field.metadata if field else ()) for b in _SIGNS]
        bounds = {b: value for b, value in both if value is not None}
        bounds = bounds or {b: value for b, value in context.items() if b in _SIGNS}
        is_whole = kind.startswith("int") or (field is not None and field.annotation is int)
        return f"a {'whole ' if is_whole else ''}number {_between(bounds)}".rstrip()
    if kind == "literal_error":
        return str(context["expected"])
    text = _KINDS.get(kind, problem["msg"])
    return text.removeprefix("Value error, ").removeprefix("Input should be ")


def _between(bounds: Mapping[str, float]) -> str:
    shown = {b: f"{v:g}" if isinstance(v, float) else str(v) for b, v in bounds.items()}
    if {"ge", "le"} <= shown.keys():
        return f"from {shown['ge']} to {shown['le']}"
    return " and ".join(f"{words} {shown[b]}" for b, words in _SIGNS.items() if b in shown)


def _as_written(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def first_problem(where: object, error: ValidationError, model: type[BaseModel]) -> ConfigError:
    """Turn what pydantic found first into one line that names the setting."""
    # A mistyped key comes before the required one that is missing because of it.
    problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
    problem = problems[0]
    if problem["type"] == "extra_forbidden":
        return _unknown_key(where, problem["loc"], model)
    name = _name_of(problem["loc"], model)
    same = [p for p in problems if _name_of(p["loc"], model) == name]
    expected = " or ".join(dict.fromkeys(_in_words(p, _field_of(p["loc"], model)) for p in same))
    found = "nothing" if problem["type"] == "missing" else _as_written(problem["input"])
    if isinstance(problem["input"], dict) and problem["type"] == "value_error":
        found = "settings that contradict each other"
    return ConfigError(
        where,
        expected=f"{name}: {expected}" if name else expected,
        found=found,
        remedy=_mend(name, problem["input"]),
    )


def read_strictly(where: object, content: object, model: type[Section]) -> Section:
    """Check what a YAML or JSON file holds against a model, without turning one type into another.

    As JSON, in which a list may become a tuple and 1 a float, but "1" and true no number.

    Raises
    ------
    ConfigError
        If a key is unknown or missing, or a value of the wrong type or range.
    """
    try:
        return model.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise first_problem(where, error, model) from error

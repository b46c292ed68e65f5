"""A run's description is read whole, or refused in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ganbert.errors import CheckpointError
from ganbert.run_folder import DESCRIPTION_NAME, read_description

DESCRIPTION: dict[str, Any] = {
    "data": "prepared",
    "index_sha256": "0" * 64,
    "intensity_ratio": 0.1,
    "recipe": {"run": {"generator": {}, "discriminator": {}}},
    "tracer": "FDG",
    "unit": "SUVR",
}


def test_a_description_comes_back_with_all_that_it_says(tmp_path: Path) -> None:
    content = DESCRIPTION | {"world_size": 2}
    (tmp_path / DESCRIPTION_NAME).write_text(json.dumps(content))
    assert read_description(tmp_path) == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "no JSON (cut off or damaged in line 1)"),
        ('{"data": "prepared",\n "tra', "no JSON (cut off or damaged in line 2)"),
        ("[" * 100_000, "another kind, or cut off"),
        ("\udcff", "no text (damaged)"),
        ("[]", "a JSON list"),
        (json.dumps(DESCRIPTION | {"data": None}), "one without data"),
        (json.dumps(DESCRIPTION | {"recipe": {"run": []}}), "recipe.run.discriminator, "),
    ],
)
def test_anything_else_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / DESCRIPTION_NAME
    if text is not None:
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        read_description(tmp_path)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)

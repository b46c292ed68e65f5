"""Nothing is left half-written, and what the system refuses is one line."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

from ganbert.atomic import make_folder, replacing, replacing_folder, write_text
from ganbert.errors import OutputError


def refuse(*_: object, **__: object) -> NoReturn:
    raise PermissionError(13, "Permission denied")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for text in ("old", "new \u00b1"):
        write_text(file, text)
    assert file.read_text(encoding="utf-8") == "new \u00b1"
    assert names(tmp_path) == ["a.json"]


def test_the_old_file_survives_whatever_goes_wrong(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    for kind in (KeyboardInterrupt, ValueError):
        with pytest.raises(kind):  # noqa: PT012
            with replacing(file) as temporary:
                temporary.write_text("half")
                raise kind
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_refusal_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OutputError, match=r"a\.json: .*Permission denied") as caught:
        write_text(tmp_path / "a.json", "new")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_path_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "x"
    for write in (lambda: write_text(below, ""), lambda: make_folder(below)):
        with pytest.raises(OutputError, match="Not a directory"):
            write()
    with pytest.raises(OutputError, match="Not a directory"), replacing_folder(below):
        pass


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    final = tmp_path / "evaluation"
    for name in ("old", "new"):
        with replacing_folder(final) as partial:
            (partial / name).touch()
    assert names(final) == ["new"]
    assert names(tmp_path) == ["evaluation"]


def test_the_old_folder_survives_whatever_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "evaluation"
    (final / "old").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), replacing_folder(final) as partial:
        raise KeyboardInterrupt
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda a, b: refuse() if a.name.endswith(".partial") else rename(a, b)
    )
    with pytest.raises(OutputError), replacing_folder(final):
        pass
    assert not partial.exists()
    assert names(final) == ["old"]
    assert names(tmp_path) == ["evaluation"]


def test_what_a_crash_between_the_renames_left_is_brought_back(tmp_path: Path) -> None:
    (tmp_path / "evaluation.previous" / "old").mkdir(parents=True)
    with pytest.raises(ValueError), replacing_folder(tmp_path / "evaluation"):  # noqa: PT011
        raise ValueError
    assert names(tmp_path) == ["evaluation"]
    assert names(tmp_path / "evaluation") == ["old"]

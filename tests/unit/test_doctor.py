"""The doctor says what is there, and leaves with one line when something required is not."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ganbert import doctor
from ganbert.errors import PlatformError

SHARED = "/dev/shm"  # noqa: S108


def test_finds_everything_that_the_tests_run_on(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.run_doctor()
    shown = capsys.readouterr().out
    for part in ("Python", "torch", "CUDA", "DeepSpeed", "DALI", SHARED, "apex", "ninja"):
        assert part in shown


def test_what_only_some_recipes_need_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_package_version", lambda name: None)
    status = {finding.part: finding.status for finding in doctor.find_libraries()}
    assert (status["tensorboard"], status["wandb"]) == ("not used", "not used")
    assert status["transformers"] == "missing"


def test_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PlatformError, match=r"found no C\+\+ compiler"):
        doctor.run_doctor()


def test_missing_dali_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_package_version", lambda name: None)
    assert doctor.find_dali().status == "missing"


@pytest.fixture(autouse=True)
def _apex_was_not_imported() -> Iterator[None]:
    """Looking for `apex.optimizers` imports apex, of which one test makes another than the next."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
        del sys.modules[name]


def test_nvidia_apex_is_detected_and_not_claimed_to_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apex" / "optimizers").mkdir(parents=True)
    for folder in (tmp_path / "apex", tmp_path / "apex" / "optimizers"):
        (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.find_apex()
    assert (finding.status, finding.use) == ("not used", "detected, not used yet")


def test_another_package_called_apex_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.find_apex()
    assert finding.status == "warning"
    assert "not NVIDIA apex" in finding.use


@pytest.mark.parametrize(
    ("size", "status", "found"),
    [(64 * 2**20, "warning", "0.06 GiB"), (2**30, "used", "1.00 GiB")],
)
def test_little_shared_memory_is_a_warning_that_says_how_to_get_more(
    size: int, status: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(total=size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    finding = doctor.find_shared_memory()
    assert (finding.part, finding.status, finding.found) == (SHARED, status, found)
    for hint in ("--shm-size=1g", "emptyDir"):
        assert (hint in finding.use) == (status == "warning")


def test_no_shared_memory_at_all_is_a_warning(tmp_path: Path) -> None:
    finding = doctor.find_shared_memory(tmp_path / "none")
    assert (finding.status, finding.found) == ("warning", "No such file or directory")

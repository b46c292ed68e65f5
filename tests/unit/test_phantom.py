import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganbert.data import phantom
from ganbert.data.phantom import make_cohort, make_person
from ganbert.errors import ConfigError, OutputError


def make_tiny(out: Path, *, num_subjects: int = 1, tracer: str = "AV45", jobs: int = 1) -> None:
    make_cohort(out, num_subjects=num_subjects, tracer=tracer, seed=5, size="tiny", jobs=jobs)


def digests(root: Path, pattern: str) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob(pattern)
    }


@given(seed=st.integers(0, 2**32), triple=st.integers(0, 50))
def test_people_are_plausible_and_every_triple_has_all_diagnoses(seed: int, triple: int) -> None:
    people = [make_person(seed, 3 * triple + k) for k in range(3)]
    assert {person.diagnosis for person in people} == {"CN", "MCI", "AD"}
    for person in people:
        assert 55 <= person.age_years <= 90
        assert 0 <= person.severity <= 1
        assert person.sex in ("F", "M")
    severity = {person.diagnosis: person.severity for person in people}
    assert severity["CN"] <= severity["MCI"] <= severity["AD"]


def test_a_subject_depends_on_neither_cohort_size_nor_processes(tmp_path: Path) -> None:
    make_tiny(tmp_path / "a", num_subjects=2, jobs=2)
    make_tiny(tmp_path / "b", num_subjects=3, jobs=1)
    small, large = (digests(tmp_path / name, "sub-*.*") for name in "ab")
    assert len(small) == 2 * 9
    assert small.items() < large.items()


def test_another_tracer_has_the_same_mri(tmp_path: Path) -> None:
    make_tiny(tmp_path / "a", tracer="AV45")
    make_tiny(tmp_path / "b", tracer="FDG")
    amyloid, glucose = (digests(tmp_path / name, "sub-*.nii.gz") for name in "ab")
    shared = amyloid.keys() & glucose.keys()
    assert shared == {
        "sub-001/anat/sub-001_T1w.nii.gz",
        "derivatives/phantom/sub-001/anat/sub-001_dseg.nii.gz",
    }
    assert {amyloid[name] for name in shared} == {glucose[name] for name in shared}


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("num_subjects", 0, "subjects"),
        ("num_subjects", -3, "subjects"),
        ("seed", -1, "seed"),
        ("jobs", 0, "jobs"),
        ("size", "huge", "demo"),
        ("tracer", "PIB", "AV45"),
    ],
)
def test_a_wrong_option_is_named_and_leaves_nothing(
    tmp_path: Path, option: str, value: object, named: str
) -> None:
    options = {"num_subjects": 1, "tracer": "AV45", "seed": 0, "size": "tiny"} | {option: value}
    with pytest.raises(ConfigError, match=named):
        make_cohort(tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="empty folder"):
        make_tiny(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="found a file"):
        make_tiny(tmp_path / "out")


def test_a_parent_that_is_a_file_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can be written"):
        make_tiny(tmp_path / "file" / "out")


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    make_tiny(tmp_path)
    assert (tmp_path / "dataset_description.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(phantom, "write_dataset", fail)
    with pytest.raises((KeyboardInterrupt, OutputError)):
        make_tiny(tmp_path / "out")
    assert not list(tmp_path.iterdir())

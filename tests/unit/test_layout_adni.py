"""A LONI/ADNI download: what the CSV and the folders say, and what is left out."""

from pathlib import Path

import pytest

from ganbert.data.layout_adni import PROTOCOL, SERIES
from ganbert.data.layouts import Found, LayoutOptions, find_pairs
from ganbert.errors import ConfigError, DatasetError

HEADING = (
    '"Image Data ID","Subject","Group","Sex","Age","Visit","Modality","Description","Type",'
    '"Acq Date","Format","Downloaded"'
)
DYNAMIC = "AV45 Co-registered Dynamic"
UNIFORM = "Coreg, Avg, Std Img and Vox Siz, Uniform Resolution"


class Download:
    """A download that grows image by image; the files are empty."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines = [HEADING]

    def add(
        self,
        number: int,
        description: str,
        date: str,
        subject: str = "002_S_0413",
        modality: str = "PET",
        on_disk: bool = True,
    ) -> Path:
        month, day, year = date.split("/")
        folder = self.root / "ADNI" / subject / description.replace(" ", "_")
        folder = folder / f"{year}-{month:0>2}-{day:0>2}_10_00_00.0" / f"I{number}"
        path = folder / f"ADNI_{subject}_I{number}.nii"
        if on_disk:
            folder.mkdir(parents=True)
            path.touch()
        self.lines.append(
            f'"I{number}","{subject}","CN","F","76","4","{modality}","{description}",'
            f'"Processed","{date}","NiFTI","7/01/2020"'
        )
        return path

    def add_mri(self, number: int, date: str, description: str = "MPRAGE", **rest) -> Path:
        return self.add(number, description, date, modality="MRI", **rest)

    def find(self, **options) -> Found:
        (self.root / "search.csv").write_text("\n".join(self.lines) + "\n")
        return find_pairs(self.root, "adni", LayoutOptions(**options))


@pytest.fixture
def download(tmp_path: Path) -> Download:
    return Download(tmp_path)


def test_a_pet_is_paired_with_the_nearest_t1w(download: Download) -> None:
    download.add_mri(1, "1/15/2012")
    near = download.add_mri(2, "4/20/2012")
    pet = download.add(3, DYNAMIC, "3/06/2012")
    (pair,) = download.find().pairs
    # 45 days after, not 51 before.
    assert (pair.mri, pair.pet) == (str(near), str(pet))
    assert (pair.subject, pair.session, pair.tracer) == ("002S0413", "20120306", "AV45")
    assert download.find(max_days=45).pairs == [pair]
    with pytest.raises(DatasetError, match="within 44 days, found the nearest 45 days away"):
        download.find(max_days=44)


def test_frames_and_unit_follow_from_the_series(download: Download) -> None:
    download.add_mri(1, "3/01/2012")
    download.add(2, DYNAMIC, "3/06/2012")
    download.add(3, UNIFORM, "3/07/2012")
    download.add(4, "AV1451 Co-registered Dynamic", "3/08/2012")
    av1451, av45, fdg = sorted(download.find().pairs, key=lambda pair: pair.tracer)
    assert av45.frame_start_s == (3000, 3300, 3600, 3900)
    assert av45.frame_duration_s == (300,) * 4
    assert (len(av1451.frame_start_s), av1451.frame_start_s[-1]) == (6, 6000)
    # Without a tracer in front it is FDG; averaged over 30 to 60 min.
    assert (fdg.frame_start_s, fdg.frame_duration_s) == ((1800,), (1800,))
    assert {pair.unit for pair in (av1451, av45, fdg)} == {"arbitrary"}


def test_every_series_of_every_tracer_is_known(download: Download) -> None:
    download.add_mri(1, "1/01/2012")
    names = {
        "dynamic": "Co-registered Dynamic",
        "averaged": "Co-registered, Averaged",
        "standard": "Coreg, Avg, Standardized Image and Voxel Size",
        "uniform": UNIFORM,
        "uniform-6mm": "Coreg, Avg, Std Img and Vox Siz, Uniform 6mm Res",
    }
    assert set(names) == set(SERIES)
    for day, tracer in enumerate(PROTOCOL, start=1):
        for step, name in enumerate(names.values()):
            prefix = "" if tracer == "FDG" else f"{tracer} "
            download.add(100 * day + step, f"{prefix}{name}", f"1/{day}/2012")
    for series in names:
        found = download.find(series=series)
        assert [pair.tracer for pair in found.pairs] == list(PROTOCOL)
        assert len(found.refusals) == len(PROTOCOL) * (len(names) - 1)
        assert {refusal.status for refusal in found.refusals} == {"left out"}
    with pytest.raises(ConfigError, match=r"--series: expected one series of AV45, found dynamic"):
        download.find()
    with pytest.raises(ConfigError, match="one of dynamic, averaged, standard"):
        download.find(series="raw")


def test_of_a_scan_that_was_processed_again_the_latest_is_taken(download: Download) -> None:
    download.add_mri(1, "3/01/2012")
    old, new = download.add(7, DYNAMIC, "3/06/2012"), download.add(12, DYNAMIC, "3/06/2012")
    found = download.find()
    assert [pair.pet for pair in found.pairs] == [str(new)]
    assert [(entry.path, entry.status) for entry in found.refusals] == [(str(old), "refused")]


def test_the_original_t1w_of_a_date_is_taken(download: Download) -> None:
    download.add_mri(3, "3/01/2012", "MPRAGE Repeat")
    original = download.add_mri(10, "3/01/2012", "Accelerated Sagittal MPRAGE")
    download.add_mri(20, "3/01/2012", "MPR; GradWarp; B1 Correction; N3")
    download.add_mri(1, "3/01/2012", "3-plane localizer")
    download.add_mri(2, "3/01/2012", "Axial DTI")
    download.add(30, DYNAMIC, "3/06/2012")
    assert [pair.mri for pair in download.find().pairs] == [str(original)]


def test_everything_else_is_rejected_with_its_reason(download: Download) -> None:
    download.add_mri(1, "3/01/2012")
    download.add(2, DYNAMIC, "3/06/2012")
    download.add(3, "PIB Co-registered Dynamic", "3/06/2012")
    download.add(4, "ADNI Brain PET: Raw AV45", "3/06/2012")
    download.add(5, DYNAMIC, "3/06/2014", on_disk=False)
    download.add(6, DYNAMIC, "3/06/2012", subject="003_S_0001")
    download.add_mri(7, "3/01/2012", subject="003_S_0002")
    stray = download.add(8, DYNAMIC, "3/06/2013")
    download.lines.pop()
    two = download.add(9, DYNAMIC, "4/06/2012")
    (two.parent / "frame2.nii").touch()
    refusals = download.find().refusals
    reasons = {entry.path: entry.reason for entry in refusals}
    expected = {
        "I3/": "a tracer of AV45, AV1451, FDG, found 'PIB Co-registered Dynamic'",
        "I4/": "a series whose frames and unit are known",
        "I5 (": "its image, found none on disk",
        "I6/": "a T1w and a PET, found no T1w",
        "I7/": "a T1w and a PET, found no PET",
        "I8/": "its image id in the search CSV, found none",
        "I9 (": "its image, found none on disk",
    }
    for part, reason in expected.items():
        (path,) = [path for path in reasons if part in path]
        assert reason in reasons[path]
    assert str(stray) in reasons
    assert "one 4D image in a folder, found 2 images" in reasons[str(two)]
    assert len(reasons) == len(expected) + 1
    alone = {entry.subject for entry in refusals if entry.status == "left out"}
    assert alone == {"003S0001", "003S0002"}


def test_image_ids_without_their_letter_and_two_csv_files(download: Download) -> None:
    download.add_mri(1, "3/01/2012")
    download.add(2, DYNAMIC, "3/06/2012")
    download.lines = [line.replace('"I1"', '"1"') for line in download.lines]
    (download.root / "again.csv").write_text("\n".join(download.lines))
    (download.root / "other.csv").write_text("RID,VISCODE\n1,bl\n")
    found = download.find()
    assert (len(found.pairs), found.refusals) == (1, [])


def test_without_a_search_csv_the_columns_are_named(download: Download) -> None:
    download.add(2, DYNAMIC, "3/06/2012")
    (download.root / "other.csv").write_text("RID,VISCODE\n1,bl\n")
    with pytest.raises(DatasetError, match=r"Image Data ID, Subject.*found other\.csv"):
        find_pairs(download.root, "adni")


def test_only_two_ways_to_write_a_date(download: Download) -> None:
    download.add_mri(1, "3/01/2012")
    download.add(2, DYNAMIC, "3/06/2012")
    download.lines[-1] = download.lines[-1].replace("3/06/2012", "06.03.2012")
    with pytest.raises(DatasetError, match="expected its Acq Date, found none"):
        download.find()


def test_diagnosis_and_side_are_those_of_the_pet(download: Download) -> None:
    download.add_mri(1, "3/01/2012")
    download.add(2, DYNAMIC, "3/06/2012")
    download.add(3, DYNAMIC, "3/06/2013")
    download.lines[-1] = download.lines[-1].replace('"CN"', '"MCI"')
    first, second = download.find(max_days=400).pairs
    assert (first.diagnosis, second.diagnosis) == ("CN", "MCI")
    assert (first.side, second.side) == (None, None)
    folds = ("fold", "n/a", "test", "train")
    download.lines = [f'{line},"{fold}"' for line, fold in zip(download.lines, folds, strict=True)]
    first, second = download.find(max_days=400, split_column="fold", diagnosis_column="Sex").pairs
    assert (first.diagnosis, first.side, second.side) == ("F", "test", "train")
    with pytest.raises(ConfigError, match=r"a column of .*search\.csv .*found Fold"):
        download.find(split_column="Fold")


def test_of_two_folders_of_one_image_the_first_is_taken_and_the_other_named(
    download: Download,
) -> None:
    mri = download.add_mri(1, "3/06/2012")
    pet = download.add(3, DYNAMIC, "3/06/2012")
    copy = download.root / "copied" / "I1" / mri.name
    copy.parent.mkdir(parents=True)
    copy.touch()
    found = download.find()
    assert [(pair.mri, pair.pet) for pair in found.pairs] == [(str(mri), str(pet))]
    (refusal,) = found.refusals
    assert refusal.path == str(copy)
    assert "expected one folder of an image id, found also ADNI/002_S_0413/MPRAGE" in refusal.reason

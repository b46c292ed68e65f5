"""A BIDS tree with every defect that is known, a subject each, and what `prepare` makes of it.

    python -m tests.defects docs/data.md        write the table into the page

The table is made from `prepare-report.tsv` of a real run; a test compares the page with it.
"""

import contextlib
import csv
import gzip
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
from rich.console import Console

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.prepare import prepare
from tests.bids_tree import write_description, write_image, write_pet, write_t1w

Damage = Callable[[Path], object]
PERSON = "Jane Doe"
START, END = "<!-- defects: start -->", "<!-- defects: end -->"


def repacked(change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of a NIfTI behind its gzip."""
    return lambda path: path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def field(offset: int, value: bytes) -> Damage:
    return repacked(lambda content: content[:offset] + value + content[offset + len(value) :])


def dimensions(*sizes: int) -> Damage:
    claim = [len(sizes), *sizes, *[1] * (7 - len(sizes))]
    return field(40, np.array(claim, "<i2").tobytes())


def raw(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def flip_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def voxels(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return lambda path: write_image(path, change(nib.load(path).get_fdata(dtype=np.float32)))


def one_nan(array: np.ndarray) -> np.ndarray:
    array[0, 0, 0] = np.nan
    return array


def image(change: Callable[[nib.Nifti1Image], nib.Nifti1Image]) -> Damage:
    def apply(path: Path) -> None:
        found = nib.load(path)
        array = found.get_fdata(dtype=np.float32)
        changed = change(nib.Nifti1Image(array, found.affine))
        changed.to_filename(path)

    return apply


def forms(matrix: np.ndarray) -> Damage:
    """Give the image a qform of its own."""

    def apply(found: nib.Nifti1Image) -> nib.Nifti1Image:
        found.set_sform(found.affine, "scanner")
        found.set_qform(matrix @ found.affine, "scanner")
        return found

    return image(apply)


def moved(millimetres: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = millimetres
    return matrix


def scaled_integers(path: Path) -> None:
    found = nib.load(path)
    header = nib.Nifti2Header(endianness=">")
    header.set_data_dtype(">i2")
    array = found.get_fdata()
    stored = nib.Nifti2Image(np.rint((array - 1.0) / 0.05), found.affine, header)
    stored.header.set_slope_inter(0.05, 1.0)
    stored.to_filename(path)


def oblique(found: nib.Nifti1Image) -> nib.Nifti1Image:
    turned = found.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    angle = np.deg2rad(20)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return nib.Nifti1Image(turned.get_fdata(dtype=np.float32), rotation @ turned.affine)


def link_to(target: str) -> Damage:
    def apply(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return apply


def link_outside(path: Path) -> None:
    outside = path.parents[3] / "outside" / path.name
    outside.parent.mkdir(exist_ok=True)
    path.rename(outside)
    path.symlink_to(outside)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_folder(path: Path) -> None:
    (path.parent / "again").symlink_to(path.parents[1], target_is_directory=True)


def sidecar(text: str | None = None, **keys: object) -> Damage:
    def apply(path: Path) -> None:
        file = path.with_suffix("").with_suffix(".json")
        content = {k: v for k, v in (json.loads(file.read_text()) | keys).items() if v is not None}
        file.write_text(json.dumps(content) if text is None else text)

    return apply


def second_pet(path: Path) -> None:
    name = path.name.replace("_pet", "_run-2_pet")
    (path.parent / name).write_bytes(path.read_bytes())
    own = path.with_suffix("").with_suffix(".json")
    (path.parent / name).with_suffix("").with_suffix(".json").write_text(own.read_text())


def frames(number: int) -> Damage:
    return voxels(lambda array: np.repeat(array[..., :1], number, axis=3))


# Subject -> (what is wrong, "T1w" or "pet", how it comes about).
DEFECTS: dict[str, tuple[str, str, Damage]] = {
    "empty": ("empty file", "T1w", raw(lambda content: b"")),
    "cut": ("gzip cut short", "T1w", raw(lambda content: content[:-100])),
    "flipped": ("flipped byte in the gzip", "T1w", raw(flip_byte)),
    "plain": ("not compressed in spite of its name", "pet", raw(gzip.decompress)),
    "magic": ("wrong magic", "T1w", field(344, b"abc\0")),
    "text": ("text instead of an image", "pet", raw(lambda content: b"not an image\n" * 99)),
    "terabytes": ("header claims terabytes", "T1w", dimensions(30000, 30000, 30000)),
    "more": ("header claims more than there is", "pet", dimensions(90, 90, 90, 2)),
    "bomb": (
        "gzip goes on behind the voxels", "T1w", repacked(lambda content: content + bytes(9 << 20))
    ),
    "zero": ("size zero", "T1w", dimensions(16, 0, 14)),
    "negative": ("negative size", "T1w", dimensions(16, -18, 14)),
    "flat": ("one slice", "T1w", dimensions(16, 18, 1)),
    "axes": ("five axes", "pet", dimensions(16, 18, 7, 2, 2)),
    "offset": ("voxels at 10^30 bytes", "T1w", field(108, np.array(1e30, "<f4").tobytes())),
    "type": ("unknown type of voxel", "T1w", field(70, b"\xe7\x03")),
    "complex": ("complex voxels", "T1w", field(70, b"\x20\x00\x40\x00")),
    "nan": ("one NaN", "T1w", voxels(one_nan)),
    "infinite": ("infinite everywhere", "pet", voxels(lambda array: array + np.inf)),
    "huge": ("values of 10^35", "pet", voxels(lambda array: array * 1e35)),
    "constant": ("constant T1w", "T1w", voxels(np.ones_like)),
    "constantpet": ("constant PET", "pet", voxels(np.zeros_like)),
    "emptyframe": ("a frame of zeros", "pet", voxels(lambda a: a * np.array([1, 0], a.dtype))),
    "twovolumes": ("T1w of two volumes", "T1w", voxels(lambda a: np.stack([a, a[::-1]], -1))),
    "singular": ("affine that cannot be inverted", "T1w", field(280, bytes(16))),
    "nowhere": ("neither sform nor qform", "T1w", field(252, bytes(4))),
    "nanaffine": ("NaN in the affine", "pet", field(292, np.array(np.nan, "<f4").tobytes())),
    "mirrored": ("sform and qform mirror each other", "T1w", forms(np.diag([-1.0, 1, 1, 1]))),
    "metres": ("voxels of 12 m", "T1w", field(123, b"\x01")),
    "far": ("PET 5 m away", "pet", image(lambda i: nib.Nifti1Image(
        i.get_fdata(dtype=np.float32), moved(5000) @ i.affine))),
    "circle": ("link to itself", "T1w", lambda path: link_to(path.name)(path)),
    "dangling": ("link to nothing", "pet", link_to("gone.nii.gz")),
    "outside": ("link that leaves the dataset", "T1w", link_outside),
    "denied": ("permission denied", "T1w", lambda path: path.chmod(0)),
    "pipe": ("a pipe instead of a file", "T1w", pipe),
    "folders": ("link to a folder above it", "T1w", link_folder),
    "json": ("sidecar is not JSON", "pet", sidecar("{")),
    "deep": ("sidecar of 100000 brackets", "pet", sidecar("[" * 100_000)),
    "list": ("sidecar is a list", "pet", sidecar("[]")),
    "unit": ("no Units", "pet", sidecar(Units=None)),
    "times": ("no FrameTimesStart", "pet", sidecar(FrameTimesStart=None)),
    "milliseconds": (
        "frames in milliseconds", "pet",
        sidecar(FrameTimesStart=[1_800_000, 2_400_000], FrameDuration=[600_000, 600_000]),
    ),
    "tracer": (
        "unknown tracer", "pet",
        lambda path: [sidecar(TracerName="PiB")(path)] + [
            f.rename(f.with_name(f.name.replace("18FFDG", "11CPIB")))
            for f in sorted(path.parent.iterdir())
        ],
    ),
    "alike": ("two PETs of one tracer", "pet", second_pet),
    "frames": ("three frames, two in the sidecar", "pet", frames(3)),
    "disagree": ("sform and qform 60 mm apart", "T1w", forms(moved(60))),
    "integers": ("big-endian NIfTI-2 of scaled integers", "T1w", scaled_integers),
    "oblique": ("oblique, axes in another order", "T1w", image(oblique)),
    "fourth": ("T1w with a fourth axis of 1", "T1w", voxels(lambda array: array[..., None])),
}  # fmt: skip
SOUND = ("01", "02", "03")


def write_defects(root: Path) -> Path:
    """Write the tree: three sound subjects, and one for each defect."""
    write_description(root)
    for subject in (*SOUND, *DEFECTS):
        paths = {"T1w": write_t1w(root, subject), "pet": write_pet(root, subject)}
        # What no output may repeat.
        for path in paths.values():
            field(148, PERSON.encode())(path)
        if subject in DEFECTS:
            _, kind, damage = DEFECTS[subject]
            damage(paths[kind])
    return root


@contextlib.contextmanager
def permissions_hold(root: Path) -> Iterator[None]:
    """Refuse what has mode 0 to the administrator too, to whom the system refuses nothing."""
    allowed = Path.open

    def open_(path: Path, *rest: object, **options: object) -> object:
        if root in path.parents and path.is_file() and path.stat().st_mode & 0o777 == 0:
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, *rest, **options)

    with mock.patch.object(Path, "open", open_):
        yield


def prepare_defects(root: Path, out: Path) -> dict[str, list[dict[str, str]]]:
    """Prepare the tree and return the lines of the report by subject."""
    with permissions_hold(root):
        prepare(
            root, out, mri_grid=TINY_MRI_GRID, pet_grid=TINY_PET_GRID, jobs=1,
            console=Console(quiet=True),
        )  # fmt: skip
    with (out / "prepare-report.tsv").open(newline="") as stream:
        lines = list(csv.DictReader(stream, delimiter="\t"))
    return {
        subject: [x for x in lines if x["subject"] == subject] for subject in (*SOUND, *DEFECTS)
    }


def table(report: dict[str, list[dict[str, str]]]) -> str:
    """Return the table of the page, in Markdown."""
    rows = ["| defect | in | status | reason in `prepare-report.tsv` |", "|---|---|---|---|"]
    for subject, (what, kind, _) in DEFECTS.items():
        for line in report[subject]:
            reason = "" if line["reason"] == "n/a" else line["reason"].replace("|", "\\|")
            # How well a file compresses is a matter of the library.
            reason = re.sub(r"a file of \d+ bytes", "a smaller file", reason)
            rows.append(f"| {what} | {kind} | {line['status']} | {reason} |")
    return "\n".join(rows)


def replace_table(page: str, new: str) -> str:
    """Return the page with the table between its two marks replaced."""
    return re.sub(f"(?<={START}\n).*?(?={END})", lambda _: f"{new}\n", page, flags=re.DOTALL)


def main() -> None:
    """Write the table into the page that is named."""
    page = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        root = write_defects(Path(folder) / "bids")
        page.write_text(
            replace_table(page.read_text(), table(prepare_defects(root, Path(folder, "out"))))
        )


if __name__ == "__main__":
    main()

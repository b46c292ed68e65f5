"""Three sinks of a step: the JSONL log, a real scrape over HTTP, and a plain line."""

import io
import json
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from ganbert.errors import OutputError, PlatformError
from ganbert.exporter import PrometheusSink
from ganbert.models.vocabulary import BandShares
from ganbert.step_stats import TOKEN_IMAGES, StepStats, token_shares_of
from ganbert.telemetry import ConsoleSink, JsonlSink, Telemetry

STATS = StepStats(
    step=7,
    samples_seen=28,
    epoch=1.75,
    seconds=0.3,
    volumes_per_second=13.25,
    data_wait_seconds=0.125,
    loss_l1=0.25,
    loss_nsp_generator=1.5,
    loss_mlm_generator=9.0,
    loss_nsp_discriminator=0.75,
    loss_mlm_discriminator=8.5,
    nsp_accuracy_real=0.5,
    nsp_accuracy_generated=1.0,
    learning_rate_generator=1e-4,
    learning_rate_discriminator=2e-4,
    own_seconds=[0.1, 0.2, 0.3, 0.4],
    token_share_pet_fake_negative=0.25,
    token_share_pet_fake_in_range=0.75,
)


@pytest.fixture
def prometheus() -> Iterator[PrometheusSink]:
    sink = PrometheusSink(0, ranks=range(2, 4))
    yield sink
    sink.close()


def scrape(port: int) -> dict[str, float]:
    """Read /metrics over HTTP: `name{label="value"}` to number."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name
        + "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_line_that_a_kill_left_half_is_not_glued_to_the_next(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 6}\n{"step": 7, "loss_l')
    sink = JsonlSink(file)
    sink.write(STATS)
    sink.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [6, 7]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "log.jsonl")
    sink.close()
    sink._stream = open("/dev/full", "a", buffering=1)
    with pytest.raises(OutputError, match="No space left on device"):
        sink.write(STATS)
    sink.close()  # the line that was not written is not tried again


def test_log_gives_back_what_was_written(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "log.jsonl")
    steps = [STATS, replace(STATS, step=8, loss_l1=0.125)]
    for stats in steps:
        sink.write(stats)
    # A line is there as soon as it is written: a killed run keeps its log.
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    sink.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [StepStats(**json.loads(line)) for line in lines] == steps
    assert list(json.loads(lines[0])) == [field.name for field in fields(StepStats)]


def test_resumed_run_goes_on_in_the_same_log(tmp_path: Path) -> None:
    for step in (1, 2):
        sink = JsonlSink(tmp_path / "log.jsonl")
        sink.write(replace(STATS, step=step))
        sink.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_scrape_shows_the_last_step_and_the_sums(prometheus: PrometheusSink) -> None:
    prometheus.write(replace(STATS, step=6, seconds=0.06, loss_l1=9.0), new_volumes=4)
    prometheus.write(STATS, new_volumes=4)
    seen = scrape(prometheus.port)
    expected = {
        "ganbert_step": 7,
        "ganbert_steps_total": 2,
        "ganbert_volumes_total": 8,
        "ganbert_data_wait_seconds_total": 0.25,
        "ganbert_step_seconds_count": 2,
        "ganbert_step_seconds_sum": 0.36,
        "ganbert_step_seconds_bucket{le=0.1}": 1,
        "ganbert_step_seconds_bucket{le=0.5}": 2,
        "ganbert_step_seconds_bucket{le=+Inf}": 2,
        "ganbert_epoch": 1.75,
        "ganbert_loss{network=generator}{term=l1}": 0.25,
        "ganbert_loss{network=generator}{term=nsp}": 1.5,
        "ganbert_loss{network=generator}{term=mlm}": 9.0,
        "ganbert_loss{network=discriminator}{term=nsp}": 0.75,
        "ganbert_loss{network=discriminator}{term=mlm}": 8.5,
        "ganbert_nsp_accuracy_ratio{kind=real}": 0.5,
        "ganbert_nsp_accuracy_ratio{kind=generated}": 1.0,
        "ganbert_token_band_ratio{band=negative}{image=pet_fake}": 0.25,
        "ganbert_token_band_ratio{band=in_range}{image=pet_fake}": 0.75,
        "ganbert_token_band_ratio{band=low}{image=pet_fake}": None,
        "ganbert_learning_rate{network=generator}": 1e-4,
        "ganbert_learning_rate{network=discriminator}": 2e-4,
        "ganbert_rank_own_seconds{rank=2}": 0.3,
        "ganbert_rank_own_seconds{rank=3}": 0.4,
        "ganbert_rank_own_seconds{rank=1}": None,  # of another node
    }
    assert {name: seen.get(name) for name in expected} == pytest.approx(expected)


def test_every_band_of_every_image_has_its_field() -> None:
    names = {f"token_share_{image}_{band}" for image in TOKEN_IMAGES for band in BandShares._fields}
    own = {field.name for field in fields(StepStats) if field.name.startswith("token_share_")}
    assert own == names
    stats = replace(STATS, **dict.fromkeys(names, 0.25))
    assert len(token_shares_of(stats)) == len(names)


def test_validation_and_checkpoints_have_their_series(prometheus: PrometheusSink) -> None:
    prometheus.write(replace(STATS, validation_l1=0.5), new_volumes=4)
    prometheus.write(STATS, new_volumes=4)  # between two checkpoints the last value stays
    prometheus.saved(7, 0.25, 4096)
    seen = scrape(prometheus.port)
    expected = {
        "ganbert_validation_l1": 0.5,
        "ganbert_checkpoint_step": 7,
        "ganbert_checkpoint_bytes": 4096,
        "ganbert_checkpoint_seconds_sum": 0.25,
        "ganbert_checkpoint_seconds_count": 1,
    }
    assert {name: seen.get(name) for name in expected} == expected


def test_labels_stay_few_and_name_nobody(prometheus: PrometheusSink) -> None:
    prometheus.write(STATS, new_volumes=4)
    own = [name for name in scrape(prometheus.port) if name.startswith("ganbert_")]
    assert 0 < len(own) < 80
    assert not [name for name in own if "subject" in name or "sub-" in name]


def test_two_runs_on_one_machine_keep_their_numbers_apart(prometheus: PrometheusSink) -> None:
    other = PrometheusSink(0)
    try:
        prometheus.write(STATS, new_volumes=4)
        assert other.port != prometheus.port
        assert scrape(other.port)["ganbert_step"] == 0
    finally:
        other.close()


def test_port_in_use_is_one_line(prometheus: PrometheusSink) -> None:
    with pytest.raises(PlatformError, match=f"metrics_port {prometheus.port}: .*a free port") as e:
        PrometheusSink(prometheus.port)
    assert len(str(e.value).splitlines()) == 1


def test_port_is_free_again_after_close() -> None:
    sink = PrometheusSink(0)
    port = sink.port
    sink.close()
    with socket.create_server(("127.0.0.1", port)):
        pass


def plain_sink(max_steps: int) -> tuple[ConsoleSink, io.StringIO]:
    stream = io.StringIO()
    return ConsoleSink(max_steps, 0, Console(file=stream, width=60)), stream


def test_plain_line_says_everything_on_one_line() -> None:
    sink, stream = plain_sink(10)
    sink.write(STATS)
    sink.close()
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("step 7/10  ETA 0:")
    assert line.endswith(
        "13.25 vol/s  L1 0.250  G nsp 1.50 mlm 9.00  D nsp 0.75 mlm 8.50  acc real 50% gen 100%"
    )


def test_plain_lines_come_at_intervals_and_at_the_end() -> None:
    sink, stream = plain_sink(10)
    for step in range(1, 11):
        sink.write(replace(STATS, step=step))
    sink.close()
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/10", "10/10"]


def test_terminal_gets_a_bar_and_no_plain_lines() -> None:
    stream = io.StringIO()
    sink = ConsoleSink(10, 0, Console(file=stream, width=200, force_terminal=True))
    sink.write(STATS)
    sink.close()
    assert "7/10" in stream.getvalue()
    assert "step 7/10" not in stream.getvalue()


def test_first_rank_of_the_run_logs_and_serves(tmp_path: Path) -> None:
    with Telemetry(tmp_path, is_first=True, port=0, total=10, done=0) as telemetry:
        telemetry.write(STATS, 4)
        assert telemetry.port
        port = telemetry.port
        assert scrape(port)["ganbert_step"] == 7
    assert json.loads((tmp_path / "log.jsonl").read_text()) == asdict(STATS)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_first_rank_of_another_node_only_serves(tmp_path: Path) -> None:
    with Telemetry(tmp_path, is_first=False, port=0, total=10, done=0) as telemetry:
        telemetry.write(STATS, 4)
        telemetry.say("nobody hears this")
        assert telemetry.port
        assert scrape(telemetry.port)["ganbert_volumes_total"] == 4
    assert not list(tmp_path.iterdir())


def test_other_ranks_do_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Telemetry(tmp_path, is_first=False, port=None, total=10, done=0) as telemetry:
        telemetry.write(STATS, 4)
        telemetry.say("nobody hears this")
        assert telemetry.port is None
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""

"""The tables of benchmarks/gpu.py: out of the figures of its parts."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Parts = dict[str, dict[str, Any]]
# Rows of a step, out of the parts of a stopwatch.
ROWS = {
    "data": ("data",),
    "generator forward": ("generator forward",),
    "generator backward": ("generator backward",),
    "discriminator learns": ("discriminator forward", "discriminator backward"),
    "discriminator judges for the generator": ("judgement forward", "judgement backward"),
    "optimisers": ("discriminator optimiser", "generator optimiser"),
}
_NONE = "-"


def floors(parts: Parts) -> dict[str, float]:
    """Seconds that a step needs at least, by what limits it, from rates of the same run.

    `arithmetic` : what the step needs, products and convolutions each at the chip's measured rate
    `memory` : the least bytes at the rate of a copy
    `written` : the bytes of every operation by itself, as eager PyTorch runs them
    `floor` : the larger of the first two, as if they overlapped fully
    """
    rates, counts = parts.get("rates", {}), parts.get("counts", {})
    if "product_flops" not in rates or "products" not in counts:
        return {}
    convolution = max(rate for name, rate in rates.items() if name.startswith("convolution_deep"))
    arithmetic = counts["products"] / rates["product_flops"] + counts["convolutions"] / convolution
    memory = counts["least_bytes"] / rates["copy_bytes"]
    found = {"arithmetic": arithmetic, "memory": memory, "floor": max(arithmetic, memory)}
    if counts["written_bytes"] is not None:
        found["written"] = counts["written_bytes"] / rates["copy_bytes"]
    return found


class _Sheet:
    """A table whose rows are figures and whose columns are contenders, the first ones compared."""

    def __init__(self, title: str, columns: list[str], ratio: str) -> None:
        self.table = Table(title=title, title_justify="left")
        self.table.add_column("")
        for heading in (*columns, ratio):
            self.table.add_column(heading, justify="right")

    def row(self, name: str, figures: list[float | None], digits: int = 2) -> None:
        cells = [_NONE if value is None else f"{value:,.{digits}f}" for value in figures]
        ours, theirs = figures[0], figures[1]
        both = ours is not None and theirs is not None and ours > 0
        cells.append(f"{theirs / ours:.2f}" if both and theirs is not None and ours else "")
        self.table.add_row(name, *cells)

    def note(self, name: str, text: str) -> None:
        self.table.add_row(name, text)


def _of(parts: Parts, *names: str) -> list[dict[str, Any]]:
    return [parts.get(name, {}) for name in names]


def _scaled(found: list[dict[str, Any]], key: str, factor: float) -> list[float | None]:
    return [None if f.get(key) is None else f[key] * factor for f in found]


def step_table(result: dict[str, Any]) -> Table:
    """Step, floors, inference and loader."""
    job, parts = result["about"]["job"], result["parts"]
    half = job["precision"]
    precisions = dict.fromkeys((half, "fp32"))
    steps = _of(parts, *(f"step:{v}:{p}" for p in precisions for v in ("ganbert", "plain")))
    runs = _of(parts, *(f"inference:{v}:{p}" for p in precisions for v in ("ganbert", "monai")))
    headings = [f"{v} {p}" for p in precisions for v in ("ganbert", "plain")]
    title = f"One step, size {job['size']}, micro-batch {job['micro_batch']}, on {job['device']}"
    sheet = _Sheet(title, headings, "plain / ganbert")
    for row, names in ROWS.items():
        of_row = [
            1000 * sum(f["seconds"].get(name, 0.0) for name in names) if "seconds" in f else None
            for f in steps
        ]
        sheet.row(f"{row} (ms)", of_row)
    sheet.row("step (ms)", _scaled(steps, "step_seconds", 1000))
    sheet.row("host, a step (ms)", _scaled(steps, "host_seconds_a_step", 1000))
    sheet.row("volumes per second", _scaled(steps, "volumes_per_second", 1))
    sheet.row("peak allocated (GiB)", _scaled(steps, "peak_allocated_bytes", 2**-30))
    sheet.row("peak reserved (GiB)", _scaled(steps, "peak_reserved_bytes", 2**-30))
    sheet.table.add_section()
    _add_floors(sheet, parts, steps[0])
    sheet.table.add_section()
    sheet.row("inference p50 (ms)", _scaled(runs, "p50_seconds", 1000))
    sheet.row("inference p99 (ms)", _scaled(runs, "p99_seconds", 1000))
    sheet.row("inference, volumes per second", _scaled(runs, "volumes_per_second", 1), 1)
    data = parts.get("data", {})
    if "volumes_per_second" in data:
        sheet.note("loader alone, volumes per second", f"{data['volumes_per_second']:,.1f}")
    return sheet.table


def _add_floors(sheet: _Sheet, parts: Parts, ours: dict[str, Any]) -> None:
    counts, rates, found = parts.get("counts", {}), parts.get("rates", {}), floors(parts)
    if "product_flops" in rates:
        sheet.note("rate: matrix product (Tflop/s)", f"{rates['product_flops'] / 1e12:,.2f}")
        for name, rate in rates.items():
            if name.startswith("convolution"):
                words = name.removesuffix("_flops").replace("_", " ")
                sheet.note(f"rate: {words} (Tflop/s)", f"{rate / 1e12:,.2f}")
        sheet.note("rate: copy (GB/s)", f"{rates['copy_bytes'] / 1e9:,.1f}")
    if "products" in counts:
        needed = counts["products"] + counts["convolutions"]
        sheet.note("arithmetic needed (Tflop)", f"{needed / 1e12:,.3f}")
        sheet.note("computed again, checkpointing", f"{counts['again'] / 1e12:,.3f}")
        if counts["counted"] is not None:
            ratio = counts["counted"] / (needed + counts["again"])
            sheet.note("FlopCounterMode / both", f"{ratio:.3f}")
        sheet.note("bytes, the least (GB)", f"{counts['least_bytes'] / 1e9:,.2f}")
        if counts["written_bytes"] is not None:
            sheet.note("bytes, as written (GB)", f"{counts['written_bytes'] / 1e9:,.2f}")
            sheet.note("operations", f"{counts['operations']:,}")
    for name, words in (
        ("arithmetic", "floor of arithmetic (ms)"),
        ("memory", "floor of memory (ms)"),
        ("written", "bytes as written at that rate (ms)"),
    ):
        if name in found:
            sheet.note(words, f"{1000 * found[name]:,.2f}")
    if found and "step_seconds" in ours:
        sheet.note("floor / step", f"{found['floor'] / ours['step_seconds']:.1%}")


def candidate_table(result: dict[str, Any], what: dict[str, str]) -> Table:
    """Each candidate beside the step without it."""
    parts = result["parts"]
    on = ", ".join(result["about"]["job"]["switches"]) or "none"
    table = Table(
        title=f"Candidates, one at a time; always on: {on}; images lie on the device",
        title_justify="left",
    )
    for heading in ("", "what", "step (ms)", "volumes/s", "times as fast", "allocated (GiB)"):
        table.add_column(heading, justify="left" if heading in ("", "what") else "right")
    before = parts.get("candidate:none", {}).get("volumes_per_second")
    for part, found in parts.items():
        kind, _, name = part.partition(":")
        if kind != "candidate":
            continue
        if "failed" in found:
            table.add_row(name, escape(f"not measured: {found['failed']}"))
            continue
        rate = found["volumes_per_second"]
        cells = [f"{1000 * found['step_seconds']:,.2f}", f"{rate:,.2f}"]
        cells.append(_NONE if before is None else f"{rate / before:.2f}")
        cells.append(f"{found['peak_allocated_bytes'] / 2**30:.2f}")
        words = what.get(name, "as it is")
        if found["steps_passed_over"]:
            words += f"; {found['steps_passed_over']} steps passed over (overflow)"
        table.add_row(name, words, *cells)
    return table


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables, why what is missing is missing, and where it was measured."""
    from switches import SWITCHES

    console.print(step_table(result))
    console.print(candidate_table(result, {name: s.what for name, s in SWITCHES.items()}))
    for part, found in result["parts"].items():
        if "failed" in found and not part.startswith("candidate:"):
            console.print(f"not measured: {part}: {found['failed']}", markup=False, soft_wrap=True)
        elif part.startswith("step:ganbert") and "remark" in found:
            console.print(f"{part}: {found['remark']}", markup=False, soft_wrap=True)
    about = result["about"]
    gpu = about["gpus"][0]["name"] if about["gpus"] else "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    console.print(
        f"{about['date']}; {gpu}, driver {about['driver']}; {about['processor']}, "
        f"{about['cores']} cores; {versions}; commit {about['commit']}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(about["command"], markup=False, highlight=False, soft_wrap=True)

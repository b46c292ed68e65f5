"""The charts of the report: loss curves, histograms and the comparison by subject, as inline SVG.

matplotlib draws them with stand-in colours that are then replaced by CSS variables, so that the
page's light and dark mode, and print, apply to charts as to the text around them. Text stays text.

It knows arrays, not runs. The brain panels are in `panels.py`.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

MAX_POINTS = 400
HISTOGRAM_BINS = 80
MAX_NAMES = 24
CHART_INCHES = (4.3, 2.7)

# Stand-ins, and the CSS variables that replace them. Blue and vermillion: Okabe and Ito.
INK, FAINT, GRID = "#010101", "#020202", "#030303"
FIRST, SECOND, THIRD, FOURTH = "#040404", "#050505", "#060606", "#070707"
_CSS = {
    INK: "var(--ink)",
    FAINT: "var(--muted)",
    GRID: "var(--line)",
    FIRST: "var(--series-1)",
    SECOND: "var(--series-2)",
    THIRD: "var(--series-3)",
    FOURTH: "var(--series-4)",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ganbert",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drawing:
    """A finished chart.

    Attributes
    ----------
    description : what a reader who cannot see it should know
    """

    title: str
    description: str
    svg: Markup


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    label: str
    values: Array
    color: str = FIRST


@dataclass(frozen=True)
class Chart:
    """What a line chart of the training log shows.

    Attributes
    ----------
    key : unique within the page; prefixes the ids of the SVG
    mark : value of a horizontal reference line
    factor : values are multiplied by it
    """

    key: str
    title: str
    unit: str
    series: tuple[Series, ...]
    logarithmic: bool = False
    limits: tuple[float, float | None] | None = None
    mark: float | None = None
    factor: float = 1.0


# The training charts, over keys of `log.jsonl`: (label, key, colour) of each line.
_Lines = tuple[tuple[str, str, str], ...]
_TRAINING: tuple[tuple[Chart, _Lines], ...] = (
    (
        Chart("l1", "Reconstruction", "L1 loss", (), logarithmic=True),
        (("generator", "loss_l1", FIRST),),
    ),
    (
        Chart("nsp", "Real or generated? (NSP)", "cross-entropy", ()),
        (
            ("generator", "loss_nsp_generator", FIRST),
            ("discriminator", "loss_nsp_discriminator", SECOND),
        ),
    ),
    (
        Chart("accuracy", "Accuracy of the discriminator", "share correct (dashed: chance)", (),
              limits=(0, 1.04), mark=0.5),
        (
            ("real PET", "nsp_accuracy_real", FIRST),
            ("generated PET", "nsp_accuracy_generated", SECOND),
        ),
    ),
    (
        Chart("mlm", "Masked tokens (MLM)", "cross-entropy", ()),
        (
            ("generator", "loss_mlm_generator", FIRST),
            ("discriminator", "loss_mlm_discriminator", SECOND),
        ),
    ),
    (
        Chart("patch", "Patches of the CNN discriminator", "cross-entropy", ()),
        (
            ("generator", "loss_patch_generator", FIRST),
            ("discriminator", "loss_patch_discriminator", SECOND),
        ),
    ),
    (
        Chart("r1", "R1 penalty", "mean square change of logits", ()),
        (("discriminator", "loss_r1_discriminator", SECOND),),
    ),
    (
        Chart("rate", "Learning rate", "learning rate, 1e-6", (), factor=1e6),
        (
            ("generator", "learning_rate_generator", FIRST),
            ("discriminator", "learning_rate_discriminator", SECOND),
        ),
    ),
    (
        Chart("throughput", "Throughput", "volumes per second", (), limits=(0, None)),
        (("all ranks", "volumes_per_second", THIRD),),
    ),
)  # fmt: skip


def draw_training(steps: Array, columns: dict[str, Array]) -> list[Drawing]:
    """Draw each training chart of which the log has at least one line.

    Parameters
    ----------
    steps : (N,) optimiser steps, increasing
    columns : key of `log.jsonl` -> (N,), NaN where unknown

    Returns
    -------
    one drawing per chart
    """
    drawn = []
    for chart, lines in _TRAINING:
        series = tuple(
            Series(label, columns[key] * chart.factor, color)
            for label, key, color in lines
            if key in columns and np.isfinite(columns[key]).any()
        )
        if series:
            text = f"{chart.title}: {chart.unit or 'value'} over optimiser steps; " + "; ".join(
                f"{line.label} ends at {_last(line.values):.3g}" for line in series
            )
            svg = draw_lines(replace(chart, series=series), steps)
            drawn.append(Drawing(chart.title, text, svg))
    return drawn


def _last(values: Array) -> float:
    return float(values[np.isfinite(values)][-1])


def draw_lines(chart: Chart, steps: Array) -> Markup:
    """Draw a chart over optimiser steps; noisy curves are shown faint with their running mean."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_chart(chart.unit)
        for series in chart.series:
            _draw_series(axes, steps, series)
        if chart.mark is not None:
            axes.axhline(chart.mark, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        if chart.logarithmic:
            _set_log_scale(axes)
        if chart.limits is not None:
            axes.set_ylim(*chart.limits)
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(chart.series) > 1:
            _add_legend(figure)
        return _to_svg(figure, chart.key)


def _set_log_scale(axes: Axes) -> None:
    """Scale the values by their logarithm, with ticks such as 0.2 and 0.5 instead of powers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high > 3 * low else tuple(np.arange(1.0, 10.0, 0.5))
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_series(axes: Axes, steps: Array, series: Series) -> None:
    known = np.isfinite(series.values)
    x, y = thin(steps[known]), thin(series.values[known])
    smooth = running_mean(y, max(1, y.size // 25))
    marker = "o" if y.size < 12 else None
    if smooth is not y:
        axes.plot(x, y, color=series.color, linewidth=0.7, alpha=0.25)
    axes.plot(x, smooth, color=series.color, label=series.label, marker=marker, markersize=3.5)


def thin(values: Array, limit: int = MAX_POINTS) -> Array:
    """Average neighbours until at most `limit` values are left."""
    if values.size <= limit:
        return values
    edges = np.linspace(0, values.size, limit + 1).astype(int)
    sums: Array = np.add.reduceat(values, edges[:-1])
    return sums / np.diff(edges)


def running_mean(values: Array, width: int) -> Array:
    """Average over a centred window that shrinks at both ends; width 1 returns `values` itself."""
    if width <= 1:
        return values
    window = np.ones(width)
    return np.convolve(values, window, "same") / np.convolve(np.ones(values.size), window, "same")


def draw_histogram(parts: Sequence[Series], unit: str, *, key: str) -> Markup:
    """Draw distributions on a log count axis (paper, Fig. 7), over the same bins; the first filled.

    Parameters
    ----------
    parts : `values` are (N,) voxel intensities, in `unit`
    """
    low = min(part.values.min() for part in parts)
    high = max(part.values.max() for part in parts)
    bins = np.linspace(low, high + 1e-6, HISTOGRAM_BINS + 1)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_chart("voxels")
        for place, part in enumerate(parts):
            count, _ = np.histogram(part.values, bins)
            if place == 0:
                axes.stairs(count, bins, fill=True, color=part.color, alpha=0.28, linewidth=0)
            axes.stairs(count, bins, color=part.color, label=part.label, linewidth=1.5)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0.7)
        axes.set_xlabel(unit)
        axes.grid(visible=False, axis="x")
        _add_legend(figure)
        return _to_svg(figure, key)


def draw_by_subject(
    names: Sequence[str], values: dict[str, Array], heading: str, *, key: str
) -> Markup:
    """Draw one line per subject with a dot per method.

    Parameters
    ----------
    names : from top to bottom
    values : method to (N,) values in the order of `names`; the first two are joined by a line
    """
    colors = (FIRST, SECOND, THIRD)
    first, *others = values.values()
    rows = np.arange(len(names))[::-1]
    named = len(names) <= MAX_NAMES
    size = (CHART_INCHES[0], max(CHART_INCHES[1], 1.1 + (0.22 if named else 0.08) * len(names)))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_chart("" if named else "subjects", size)
        if others:
            axes.hlines(rows, first, others[0], color=FAINT, linewidth=1)
        for (method, value), color in zip(values.items(), colors, strict=False):
            axes.plot(value, rows, "o", color=color, label=method, markersize=6)
        axes.set_yticks(rows if named else [], names if named else [])
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(heading)
        _add_legend(figure)
        return _to_svg(figure, key)


def draw_strip(values: dict[str, Array], unit: str, *, key: str) -> Markup:
    """Draw a row of dots for each group, and a tick at its median.

    Parameters
    ----------
    values : group -> (N,) values in `unit`, from top to bottom
    """
    rows = np.arange(len(values))[::-1]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_chart("", (CHART_INCHES[0], max(1.2, 0.8 + 0.22 * len(values))))
        for row, array in zip(rows, values.values(), strict=True):
            axes.plot(array, np.full(len(array), row), "o", color=FIRST, alpha=0.45, markersize=5)
            axes.plot(
                [np.median(array)], [row], "|", color=SECOND, markersize=13, markeredgewidth=2
            )
        axes.set_yticks(rows, list(values))
        # Values that are near to each other have long names.
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.set_ylim(-0.7, len(values) - 0.3)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(unit)
        return _to_svg(figure, key)


def draw_bland_altman(
    means: Array, differences: Array, limits: tuple[float, float, float], unit: str, *, key: str
) -> Markup:
    """Draw the difference of each subject over the mean of both methods, with bias and limits.

    Parameters
    ----------
    means, differences : (N,) of synthesised and real value; synthesised - real; in `unit`
    limits : lower limit, bias, upper limit, in `unit`; NaN ones are not drawn

    Source
    ------
    Bland and Altman 1986, Lancet 327, Fig. 2.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_chart(f"synthesised \u2212 real, {unit}")
        axes.axhline(0, color=GRID, linewidth=1.2)
        names = ("limits of agreement", "bias", "")
        styles = ((0, (4, 3)), "-", (0, (4, 3)))
        for value, name, style in zip(limits, names, styles, strict=True):
            if np.isfinite(value):
                color = THIRD if name == "bias" else SECOND
                axes.axhline(value, color=color, linestyle=style, label=name or None)
        axes.plot(means, differences, "o", color=FIRST, label="subject", markersize=5)
        axes.set_xlabel(f"mean of synthesised and real, {unit}")
        axes.margins(x=0.08, y=0.12)
        _add_legend(figure)
        return _to_svg(figure, key)


def _new_chart(unit: str, size: tuple[float, float] = CHART_INCHES) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(unit)
    return figure, axes


def _add_legend(figure: Figure) -> None:
    """Name the lines above the axes, flush with the title of the card."""
    figure.legend(loc="outside upper left", ncols=3, borderpad=0.1, borderaxespad=0.1,
                  handlelength=1.2, columnspacing=1.2, handletextpad=0.5)  # fmt: skip


def _to_svg(figure: Figure, key: str) -> Markup:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several charts share one page, and an id must be unique in it.
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = svg.replace("url(#", f"url(#{key}-").replace('href="#', f'href="#{key}-')
    for stand_in, variable in _CSS.items():
        svg = svg.replace(stand_in, variable)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg height="[^"]*" width="[^"]*"',
                  r"<svg \1", svg, count=1)  # fmt: skip
    return Markup(svg)  # noqa: S704 - drawn here; matplotlib escapes the text in it

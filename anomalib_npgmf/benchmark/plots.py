"""Pictures of a report: scores by category, and sPRO curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomalib_npgmf.benchmark.report_records import Group, Metric, Spread

Series = Mapping[str, tuple[Group, str]]

_PANELS: tuple[tuple[str, Metric], ...] = (
    ("image AUROC, mean of both types (%)", ("loco_auroc", "mean")),
    ("sPRO@0.05, mean of both types (%)", ("spro", "0.05", "mean")),
    ("image AUROC (%)", ("image_auroc",)),
    ("pixel AUROC (%)", ("pixel_auroc",)),
)
_KINDS = ("logical", "structural")
_LIMIT = 0.3
_DPI = 90


def plot_bars(series: Series, path: Path) -> Path | None:
    """Draw the scores of every category, one bar per series, with the spread over seeds.

    Args:
        series: Group and name of the map, by label.
        path: PNG file to write.

    Returns:
        The path; None if there is nothing to draw.
    """
    loco = any("loco_auroc" in metric for group, _ in series.values() for metric in group.metrics)
    panels = []
    for title, metric in _PANELS[:2] if loco else _PANELS[2:]:
        if any(group.of_category(c, name, metric) for group, name in series.values() for c in group.categories):
            panels.append((title, metric))
    if not panels:
        return None
    categories = list(dict.fromkeys(c for group, _ in series.values() for c in group.categories))
    figure = Figure(figsize=(max(8.0, 1.6 * (len(categories) + 1)), 3.0 * len(panels)), layout="constrained")
    for axes, (title, metric) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _draw_bars(axes, series, categories, metric)
        axes.set_ylabel(title, fontsize=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(series), 5), fontsize=8)
    return _save(figure, path)


def plot_curves(series: Series, path: Path) -> Path | None:
    """Draw the sPRO curves up to a false positive rate of 0.3, the mean over categories and seeds.

    Args:
        series: Group and name of the map, by label.
        path: PNG file to write.

    Returns:
        The path; None without curves.
    """
    rates = np.linspace(0, _LIMIT, 151)
    curves = {
        (kind, label): curve
        for kind in _KINDS
        for label, (group, name) in series.items()
        if (curve := _mean_curve(group, name, kind, rates)) is not None
    }
    if not curves:
        return None
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), _KINDS, strict=True):
        for index, label in enumerate(series):
            if (kind, label) in curves:
                axes.plot(rates, curves[kind, label], label=label, color=_colour(index))
        axes.axvline(0.05, color="0.6", linewidth=0.8, linestyle=":")
        axes.set(title=f"{kind} anomalies", xlabel="false positive rate", xlim=(0, _LIMIT), ylim=(0, 1))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean sPRO")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    return _save(figure, path)


def _draw_bars(axes: Axes, series: Series, categories: list[str], metric: Metric) -> None:
    positions = np.arange(len(categories) + 1)
    width = 0.8 / len(series)
    for index, (label, (group, name)) in enumerate(series.items()):
        bars = [group.of_category(category, name, metric) for category in categories]
        bars.append(group.overall(name, metric))
        heights = [_percent(bar) for bar in bars]
        spreads = [100 * bar.std if bar and bar.std is not None else 0.0 for bar in bars]
        place = positions + (index - (len(series) - 1) / 2) * width
        axes.bar(place, heights, width, yerr=spreads, label=label, color=_colour(index), error_kw={"elinewidth": 0.8})
    axes.set_xticks(positions, [*categories, "mean"], fontsize=8)
    axes.set_ylim(0, 100)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _mean_curve(group: Group, name: str, kind: str, rates: NDArray[np.float64]) -> NDArray[np.float64] | None:
    found = []
    for record in group.records.values():
        points = record["metrics"].get(name, {}).get("spro_curve", {}).get(kind)
        if points:
            found.append(np.interp(rates, points[0], points[1]))
    return np.mean(found, axis=0) if found else None


def _percent(value: Spread | None) -> float:
    return float("nan") if value is None else 100 * value.mean


def _colour(index: int) -> str:
    return f"C{index % 10}"


def _save(figure: Figure, path: Path) -> Path:
    # without the version of matplotlib, so that equal results give equal files
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path

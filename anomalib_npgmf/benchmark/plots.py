"""Plots of a report: scores by category, and sPRO curves."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomalib_npgmf.benchmark.results import Group
from anomalib_npgmf.disk import write_bytes

Series = Mapping[str, tuple[Group, str]]  # group and name of the map, by label

_PANELS = {
    "AUROC mean": "image AUROC, mean of both types (%)",
    "sPRO@0.05 mean": "sPRO@0.05, mean of both types (%)",
    "image AUROC": "image AUROC (%)",
    "pixel AUROC": "pixel AUROC (%)",
}
_KINDS = ("logical", "structural")
_RATES = np.linspace(0, 0.3, 151)


def plot_bars(series: Series, path: Path) -> Path | None:
    """Draw scores by category, one bar per series, with standard deviations over seeds; None without scores."""
    measured = {metric for group, name in series.values() for metric in group.metrics}
    panels = {metric: title for metric, title in _PANELS.items() if metric in measured}
    if not panels:
        return None
    categories = list(dict.fromkeys(c for group, _ in series.values() for c in group.categories))
    figure = Figure(figsize=(max(8.0, 1.6 * (len(categories) + 1)), 3.0 * len(panels)), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        _draw_bars(axes, series, categories, metric)
        axes.set_ylabel(title, fontsize=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(series), 5), fontsize=8)
    return _save(figure, path)


def plot_curves(series: Series, path: Path) -> Path | None:
    """Draw the sPRO curves, the mean over categories and seeds; None without curves."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), _KINDS, strict=True):
        for index, (label, (group, name)) in enumerate(series.items()):
            if curves := _curves(group, name, kind):
                axes.plot(_RATES, np.mean(curves, axis=0), label=label, color=f"C{index % 10}")
        axes.axvline(0.05, color="0.6", linewidth=0.8, linestyle=":")
        axes.set(title=f"{kind} anomalies", xlabel="false positive rate", xlim=(0, _RATES[-1]), ylim=(0, 1))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean sPRO")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    return _save(figure, path) if handles else None


def _draw_bars(axes: Axes, series: Series, categories: list[str], metric: str) -> None:
    positions = np.arange(len(categories) + 1)
    width = 0.8 / len(series)
    for index, (label, (group, name)) in enumerate(series.items()):
        values = group.pivot(name, metric).reindex(columns=categories)
        bars = pd.concat([100 * values, 100 * group.by_seed(name, metric).rename("mean")], axis=1)
        place = positions + (index - (len(series) - 1) / 2) * width
        spread, colour = bars.std().fillna(0), f"C{index % 10}"
        axes.bar(place, bars.mean(), width, yerr=spread, label=label, color=colour, error_kw={"elinewidth": 0.8})
    axes.set_xticks(positions, [*categories, "mean"], fontsize=8)
    axes.set_ylim(0, 100)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _curves(group: Group, name: str, kind: str) -> list[NDArray[np.float64]]:
    metrics = (record["metrics"].get(name, {}) for record in group.records.values())
    points = (found.get("spro_curve", {}).get(kind) for found in metrics)
    return [np.interp(_RATES, *curve) for curve in points if curve]


def _save(figure: Figure, path: Path) -> Path:
    # without the version of matplotlib, so that equal results give equal files
    picture = BytesIO()
    figure.savefig(picture, format=path.suffix[1:], dpi=90, metadata={"Software": None})
    write_bytes(path, picture.getvalue())
    return path

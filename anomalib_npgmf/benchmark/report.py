"""Render the records of a run as Markdown: scores, codebooks, costs, pictures and what they were made with."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import StrictUndefined, Template

from anomalib_npgmf.benchmark.origin import codebooks, costs, origin
from anomalib_npgmf.benchmark.plan import Plan, key_of
from anomalib_npgmf.benchmark.plots import Series, plot_bars, plot_curves
from anomalib_npgmf.benchmark.results import DEFECTS, MAPS, MERGED, Group, Results, difference, load_results
from anomalib_npgmf.benchmark.tables import spread, table
from anomalib_npgmf.disk import write_bytes

_PARTS = (MERGED, "logical", "structural", "composition")
_PAIRS = (("1:3", "logical"), ("1:3", "structural"), ("1:3", "3:1"), ("1:3", "1:1"), ("1:3", "maximum"))
_PAIRS_OF_MERGED = tuple((MERGED, name) for name in ("1:3", "maximum", "composition", "logical", "structural"))
_TEMPLATE = Path(__file__).parent / "templates" / "report.md.j2"
_Rows = Mapping[str, Mapping[str, "pd.Series[float]"]]  # values by seed, by row and column


def write_report(folder: Path, output: Path, command: str, plan: Plan | None = None) -> list[Path]:
    """Write the report of a run and its pictures.

    Args:
        folder: Output folder of the run.
        output: Markdown file; the pictures lie in ``images/`` beside it.
        command: Command that makes this report, for its header.
        plan: Plan of the run, which tells what is missing and what the title is.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder holds no record, or a file is none.
    """
    results = load_results(folder, plan)
    images = output.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Path] = {}
    for name, series in _series(results).items():
        ending, of = (f"_{name}.png", f" of {name}") if name else (".png", "")
        for kind, title, plot in (("bars", "Every category", plot_bars), ("curves", "sPRO curves", plot_curves)):
            if path := plot(series, images / f"{output.stem}_{kind}{ending}"):
                plots[f"{title}{of}"] = path
    for old in images.glob(f"{output.stem}_gallery_*.jpg"):
        old.unlink()
    gallery: dict[str, Path] = {}
    for group in results.groups:
        for role, picture in _pictures(group, folder).items():
            name = f"{output.stem}_gallery_{group.name.replace('/', '_')}_{picture.parent.name}_{role}.jpg"
            title = f"{group.name}: {picture.parent.name}, {role.replace('_', ' ')}"
            gallery[title] = Path(shutil.copyfile(picture, images / name))
    text = Template(_TEMPLATE.read_text(encoding="utf-8"), undefined=StrictUndefined).render(
        title=plan.title if plan else folder.name,
        command=command,
        results=results,
        groups=[group for group in results.groups if group.records],
        notes=MAPS,
        origin=origin(results),
        plots=plots,
        gallery=gallery,
        **{f.__name__.strip("_"): f for f in (_shortened, _compare, _means, _differences, _limits, _defects, _table)},
        **{f.__name__: f for f in (codebooks, costs)},
    )
    write_bytes(output, (re.sub(r"\n{3,}", "\n\n", text).strip() + "\n").encode())
    return [output, *plots.values(), *gallery.values()]


def _table(title: str, rows: _Rows, *, signed: bool = False) -> str:
    """A table in per cent with the columns that any of the rows has; "" without rows."""
    header = list(dict.fromkeys(column for row in rows.values() for column in row))
    empty: pd.Series[float] = pd.Series(dtype=float)
    texts = [[name, *(spread(row.get(c, empty), signed=signed) for c in header)] for name, row in rows.items()]
    return table([title, *header], texts) if rows else ""


def _shortened(keys: Sequence[str]) -> list[str]:
    """Names of cells; of a model and variant with more than three cells only their number."""
    names = pd.Series(keys).groupby(["/".join(key.split("/")[:2]) for key in keys], sort=False)
    return [
        text
        for group, cells in names
        for text in ([f"{len(cells)} cells of `{group}`"] if len(cells) > 3 else [f"`{key}`" for key in cells])
    ]


def _compare(groups: Sequence[Group]) -> str:
    """Means of all models, and the difference of each from the first one."""
    metrics = list(dict.fromkeys(metric for group in groups for metric in group.metrics))
    means = {group.name: [group.by_seed(MERGED, metric) for metric in metrics] for group in groups}
    first, *others = means
    rows = [[name, str(len(values[0])), *map(spread, values)] for name, values in means.items()]
    for name in others:
        gaps = map(difference, means[name], means[first])
        rows.append([f"{name} less {first}", "", *(spread(gap, signed=True) for gap in gaps)])
    return table(["model", "seeds", *metrics], rows)


def _means(group: Group, category: str | None = None) -> _Rows:
    """Metrics of every map, of a category or of the mean over all; empty if no seed has all categories."""
    rows = {name: {m: group.values(name, m, category) for m in group.metrics} for name in group.maps}
    return {} if all(values.empty for values in rows[MERGED].values()) else rows


def _differences(means: _Rows) -> _Rows:
    return {
        f"{first} less {second}": {m: difference(value, means[second][m]) for m, value in means[first].items()}
        for first, second in (*_PAIRS, *(_PAIRS_OF_MERGED if "composition" in means else ()))
        if first in means and second in means
    }


def _limits(group: Group) -> tuple[str, _Rows]:
    """The mean sPRO of every map by limit, or that of the only type of anomaly that the data have, which is named."""
    merged = group.scores.loc[group.scores["map"] == MERGED, "metric"].unique()
    kind = next((k for k in ("mean", "logical", "structural") if f"sPRO@0.05 {k}" in merged), "")
    measured = (re.fullmatch(rf"sPRO@([\d.]+) {kind}", name) for name in merged)
    limits = sorted((found[1] for found in measured if found), key=float)
    return kind, {name: {limit: group.by_seed(name, f"sPRO@{limit} {kind}") for limit in limits} for name in group.maps}


def _defects(group: Group, category: str) -> dict[str, _Rows]:
    """Image AUROC and AU-sPRO by type of defect, of the merged map and of each branch alone."""
    chosen = (group.scores["category"] == category) & (group.scores["map"] == MERGED)
    names = sorted(group.scores.loc[chosen, "metric"].unique())
    maps = [name for name in group.maps if name in _PARTS]
    tables: dict[str, _Rows] = {}
    for prefix in DEFECTS:
        defects = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        rows = {defect: {m: group.of_category(category, m, prefix + defect) for m in maps} for defect in defects}
        tables[prefix.removesuffix(" of ")] = rows
    return tables


def _series(results: Results) -> dict[str, Series]:
    """What each picture compares, by the picture's name: the maps of each model that has several, and all models."""
    groups = [group for group in results.groups if group.records]
    shown = (*_PARTS, "1:3")
    parts = {g.name.replace("/", "_"): {m: (g, m) for m in g.maps if m in shown} for g in groups if len(g.maps) > 1}
    if len(groups) == 1:
        return {"": next(iter(parts.values()), {MERGED: (groups[0], MERGED)})}
    return {"": {group.name: (group, MERGED) for group in groups}, **parts} if groups else {}


def _pictures(group: Group, folder: Path) -> dict[str, Path]:
    """Pictures of anomalous images by role, of the first category and seed whose pictures are in the run's folder."""
    for record in group.records.values():
        place = (folder / key_of(record["cell"])).parent
        names = record.get("gallery", {})
        pictures = {role: place / name for role, name in names.items() if not role.endswith("_good")}
        if pictures and all(path.is_file() for path in pictures.values()):
            return pictures
    return {}

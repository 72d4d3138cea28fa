"""Results of a run: the records of its cells by model and variant, and their scores as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from anomalib_npgmf.benchmark.plan import Plan, key_of
from anomalib_npgmf.benchmark.record import Record, read

MERGED = "merged"
MAPS = {
    MERGED: "the merged map of the model",
    "logical": "the logical branch alone",
    "structural": "the structural branch alone",
    "composition": "the composition branch alone",
    "1:3": "eq. 11 of the paper: calibrated maps of the two branches, logical once and structural three times",
    "3:1": "the other order of the weights",
    "1:1": "equal weights",
    "maximum": "the larger one of the two calibrated maps",
}
LOCO = tuple(f"{name} {kind}" for name in ("AUROC", "sPRO@0.05") for kind in ("logical", "structural", "mean"))
PLAIN = ("image AUROC", "pixel AUROC")
DEFECTS = ("AUROC of ", "sPRO@0.05 of ")  # followed by the defect type


@dataclass
class Group:
    """The records of one model in one variant."""

    model: str
    variant: str
    categories: list[str]  # expected, with or without a record
    seeds: list[int]  # likewise
    records: dict[tuple[str, int], Record] = field(default_factory=dict)  # finished cells by category and seed

    @property
    def name(self) -> str:
        """``model``, or ``model/variant`` unless the variant is the only one."""
        return self.model if self.variant == "default" else f"{self.model}/{self.variant}"

    @property
    def measured_categories(self) -> list[str]:
        """Categories with a finished cell."""
        return [name for name in self.categories if any(category == name for category, _ in self.records)]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One measured value in [0, 1] per row, with its ``map``, ``metric``, ``category`` and ``seed``."""
        rows = [
            (name, metric, *cell, value)
            for cell, record in self.records.items()
            for name, metrics in record["metrics"].items()
            for metric, value in _flat(metrics).items()
        ]
        return pd.DataFrame(rows, columns=["map", "metric", "category", "seed", "value"])

    @property
    def maps(self) -> list[str]:
        """Maps that were scored: the known ones in a fixed order, then others."""
        found = dict.fromkeys(name for record in self.records.values() for name in record["metrics"])
        return [name for name in MAPS if name in found] + [name for name in found if name not in MAPS]

    @property
    def metrics(self) -> list[str]:
        """Metrics to show: those of MVTec LOCO AD for data in its layout, else those of MVTec AD."""
        measured = set(self.scores["metric"])
        return [name for name in LOCO if name in measured] or [name for name in PLAIN if name in measured]

    def pivot(self, name: str, metric: str) -> pd.DataFrame:
        """Values of a map by seed (rows) and category (columns), NaN where there is none."""
        chosen = self.scores[(self.scores["map"] == name) & (self.scores["metric"] == metric)]
        values = chosen.pivot(index="seed", columns="category", values="value")
        return values.reindex(index=self.seeds, columns=self.categories)

    def values(self, name: str, metric: str, category: str | None = None) -> pd.Series[float]:
        """Values of a map by seed: of a category, or else of the mean over all categories."""
        return self.by_seed(name, metric) if category is None else self.of_category(category, name, metric)

    def of_category(self, category: str, name: str, metric: str) -> pd.Series[float]:
        """Values of a map in a category, by seed."""
        return self.pivot(name, metric)[category].dropna()

    def by_seed(self, name: str, metric: str) -> pd.Series[float]:
        """Mean over all categories, by seed; a seed that lacks a category is left out."""
        complete = self.pivot(name, metric).dropna()
        # not mean(), whose last bit depends on the order of the values and may change a rounded value
        return pd.Series({seed: fmean(values) for seed, values in complete.T.items()}, dtype=float)


@dataclass
class Results:
    """All records of a run."""

    groups: list[Group]  # in the order of the plan or else of the names
    failed: dict[str, str] = field(default_factory=dict)  # error by key of the cell
    missing: list[str] = field(default_factory=list)  # keys of cells without a record

    @property
    def records(self) -> list[Record]:
        """Records of all finished cells."""
        return [record for group in self.groups for record in group.records.values()]


def load_results(folder: Path, plan: Plan | None = None) -> Results:
    """Read the records below a folder.

    Args:
        folder: Output folder of ``run``: ``<model>/<variant>/<category>/seed<k>.json``.
        plan: What should be there; other records are left out. Without a plan, that is every combination of the
            categories and seeds that a model in a variant has any record of.

    Raises:
        ValueError: If the folder holds no record, or a file is none.
        FileNotFoundError: If there is no such folder.
    """
    if not folder.is_dir():
        msg = f"There is no folder {folder}; give the output folder of the run command."
        raise FileNotFoundError(msg)
    found = {key_of(record["cell"]): record for record in map(_read, sorted(folder.rglob("seed*.json")))}
    if not found:
        msg = f"There are no records in {folder}; give the output folder of the run command."
        raise ValueError(msg)
    wanted = pd.DataFrame([vars(cell) for cell in plan.cells] if plan else [r["cell"] for r in found.values()])
    results = Results([])
    for (model, variant), cells in wanted.groupby(["model", "variant"], sort=False):
        group = Group(model, variant, cells["category"].unique().tolist(), cells["seed"].unique().tolist())
        results.groups.append(group)
        for category, seed in product(group.categories, group.seeds):
            key = key_of({"model": model, "variant": variant, "category": category, "seed": seed})
            record = found.get(key)
            if record is None:
                results.missing.append(key)
            elif record["status"] == "finished":
                group.records[category, seed] = record
            else:
                results.failed[key] = record.get("error", "unknown error")
    return results


def difference(first: pd.Series[float], second: pd.Series[float]) -> pd.Series[float]:
    """``first`` minus ``second`` for the seeds that both have."""
    return (first - second).dropna()


def _read(path: Path) -> Record:
    try:
        record: Record = read(path)  # type: ignore[assignment]
        key_of(record["cell"])
        if record["status"] == "finished":
            record["metrics"][MERGED]
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{path} is no record of a cell; take it out of the folder or run its cell again."
        raise ValueError(msg) from error
    return record


def _flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Values by the name of the metric that a report prints."""
    keys = {name: name.replace(" ", "_").lower() for name in PLAIN}
    flat = {name: metrics[key] for name, key in keys.items() if key in metrics}
    flat |= {f"AUROC {kind}": value for kind, value in metrics.get("loco_auroc", {}).items()}
    auroc, spro = DEFECTS
    flat |= {auroc + defect: value for defect, value in metrics.get("loco_auroc_per_defect", {}).items()}
    flat |= {spro + defect: limits["0.05"] for defect, limits in metrics.get("spro_per_defect", {}).items()}
    for limit, kinds in metrics.get("spro", {}).items():
        flat |= {f"sPRO@{limit} {kind}": value for kind, value in kinds.items()}
    return flat

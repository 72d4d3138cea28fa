"""What a report is made of: the records of a run, by model and variant, and figures over categories and seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from anomalib_npgmf.benchmark.plan import Plan

# not imported from `evaluate`: a report needs neither torch nor anomalib
MERGED = "merged"
MAPS = (
    *(MERGED, "logical", "structural", "composition", "amounts"),
    *("1:3", "3:1", "1:1", "maximum", "1:3+composition", "maximum+amounts"),
)

Record = dict[str, Any]
Metric = tuple[str, ...]

AUROC: tuple[Metric, ...] = tuple(("loco_auroc", kind) for kind in ("logical", "structural", "mean"))
SPRO: tuple[Metric, ...] = tuple(("spro", "0.05", kind) for kind in ("logical", "structural", "mean"))
PLAIN: tuple[Metric, ...] = (("image_auroc",), ("pixel_auroc",))


class Spread(NamedTuple):
    """Mean over seeds.

    Attributes:
        mean: Mean.
        std: Sample standard deviation (divided by the number less one); None for a single seed.
        seeds: Number of seeds.
    """

    mean: float
    std: float | None
    seeds: int


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None without values.

    Example:
        >>> spread([0.5, 0.75, 1.0])
        Spread(mean=0.75, std=0.25, seeds=3)
        >>> spread([])
    """
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


@dataclass
class Group:
    """The records of one model in one variant.

    Attributes:
        model: Name of the model in the plan.
        variant: Name of the variant.
        categories: Categories that there should be.
        seeds: Seeds that there should be.
        records: Records of finished cells by category and seed.
    """

    model: str
    variant: str
    categories: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    records: dict[tuple[str, int], Record] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``model``, or ``model/variant`` unless the variant is the only one."""
        return self.model if self.variant == "default" else f"{self.model}/{self.variant}"

    @property
    def measured_categories(self) -> list[str]:
        """Categories with a finished cell."""
        return [name for name in self.categories if any(category == name for category, _ in self.records)]

    @property
    def maps(self) -> list[str]:
        """Maps that were scored: the known ones in a fixed order, then others."""
        found = dict.fromkeys(name for record in self.records.values() for name in record["metrics"])
        return [name for name in MAPS if name in found] + [name for name in found if name not in MAPS]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics that were measured: those of MVTec LOCO AD for data in its layout, else those of MVTec AD."""
        all_maps = [m for record in self.records.values() for m in record["metrics"].values()]
        candidates = AUROC + SPRO if any("loco_auroc" in metrics for metrics in all_maps) else PLAIN
        return tuple(metric for metric in candidates if any(_look_up(m, metric) is not None for m in all_maps))

    def value(self, category: str, seed: int, name: str, metric: Metric) -> float | None:
        """One measured value in [0, 1]; None if it was not measured or is not defined."""
        record = self.records.get((category, seed))
        return None if record is None else _look_up(record["metrics"].get(name, {}), metric)

    def of_category(self, category: str, name: str, metric: Metric) -> Spread | None:
        """Mean and spread over the seeds of a category."""
        values = (self.value(category, seed, name, metric) for seed in self.seeds)
        return spread([value for value in values if value is not None])

    def by_seed(self, name: str, metric: Metric) -> dict[int, float]:
        """Mean over all categories, by seed; a seed that lacks a category is left out."""
        means = {}
        for seed in self.seeds:
            values = [self.value(category, seed, name, metric) for category in self.categories]
            known = [value for value in values if value is not None]
            if known and len(known) == len(values):
                means[seed] = fmean(known)
        return means

    def overall(self, name: str, metric: Metric) -> Spread | None:
        """Mean and spread, over seeds, of the mean over all categories."""
        return spread(list(self.by_seed(name, metric).values()))


def difference(first: dict[int, float], second: dict[int, float]) -> Spread | None:
    """Mean and spread of ``first`` less ``second`` over the seeds that both have."""
    return spread([value - second[seed] for seed, value in first.items() if seed in second])


@dataclass
class Results:
    """All records of a run.

    Attributes:
        groups: Records by model and variant, in the order of the plan or else of the names.
        failed: Error by key of a failed cell.
        missing: Keys of cells that have no record.
        unplanned: Records of finished cells that are not in the plan, each as a group of its own.
    """

    groups: list[Group]
    failed: dict[str, str]
    missing: list[str]
    unplanned: list[Group] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        """Records of all finished cells."""
        return [record for group in self.groups for record in group.records.values()]


def load_results(folder: Path, plan: Plan | None = None) -> Results:
    """Read the records below a folder.

    Args:
        folder: Output folder of ``run``: ``<model>/<variant>/<category>/seed<k>.json``.
        plan: What should be there. Left out, that is every combination of the categories and seeds that a model in a
            variant has any record of.

    Returns:
        The records. With a plan only those of its cells are in the groups; others are kept apart, so that a report can
        tell of what was measured and left out.

    Raises:
        ValueError: If the folder holds no record, or a file is none.
        FileNotFoundError: If there is no such folder.
    """
    if not folder.is_dir():
        msg = f"There is no folder {folder}; give the output folder of the run command."
        raise FileNotFoundError(msg)
    found = {record_key(record): record for record in map(_read, sorted(folder.rglob("seed*.json")))}
    if not found:
        msg = f"There are no records in {folder}; give the output folder of the run command."
        raise ValueError(msg)
    groups: dict[tuple[str, str], Group] = {}
    for cell in [vars(cell) for cell in plan.cells] if plan else [record["cell"] for record in found.values()]:
        name = (cell["model"], cell["variant"])
        group = groups.setdefault(name, Group(*name))
        group.categories += [cell["category"]] if cell["category"] not in group.categories else []
        group.seeds += [cell["seed"]] if cell["seed"] not in group.seeds else []
    failed, missing = {}, []
    for group in groups.values():
        for category in group.categories:
            for seed in group.seeds:
                key = f"{group.model}/{group.variant}/{category}/seed{seed}"
                record = found.get(key)
                if record is None:
                    missing.append(key)
                elif record["status"] == "finished":
                    group.records[category, seed] = record
                else:
                    failed[key] = str(record.get("error", "unknown error"))
    planned = {record_key(record) for group in groups.values() for record in group.records.values()}
    unplanned = []
    for key, record in found.items():
        if record["status"] == "finished" and key not in planned:
            model, variant, category, seed = (record["cell"][name] for name in ("model", "variant", "category", "seed"))
            unplanned.append(Group(model, variant, [category], [seed], {(category, seed): record}))
    return Results(list(groups.values()), failed, missing, unplanned)


def record_key(record: Record) -> str:
    """Name of a record's cell, ``model/variant/category/seed<k>``."""
    return "{model}/{variant}/{category}/seed{seed}".format(**record["cell"])


def _read(path: Path) -> Record:
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        record_key(record)
        if record["status"] == "finished":
            record["metrics"][MERGED]
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{path} is no record of a cell; take it out of the folder or run its cell again."
        raise ValueError(msg) from error
    return record


def _look_up(metrics: dict[str, Any], metric: Metric) -> float | None:
    value: Any = metrics
    for key in metric:
        value = value.get(key) if isinstance(value, dict) else None
    return value

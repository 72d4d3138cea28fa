"""Rewrite the tables of docs/findings.md and of the README's results from the results files.

python studies/findings.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import pandas as pd
from _common import RESULTS, ROOT, fill, load, table

from anomalib_npgmf.benchmark.plan import load_plan
from anomalib_npgmf.benchmark.results import LOCO, PLAIN, Group, load_results
from anomalib_npgmf.benchmark.tables import spread

METRICS = list(LOCO)
AUROC, SPRO = METRICS[:3], METRICS[3:]
MEANS = (AUROC[2], SPRO[2])
Found = Mapping[str, pd.DataFrame]  # metrics of a map or variant, by category and seed


def groups(name: str) -> list[Group]:
    """Records of a plan by model and variant; of the ablation also those of an earlier variant."""
    plan = None if name == "ablation" else load_plan(ROOT / "configs" / "plans" / f"{name}.yaml")
    return load_results(RESULTS / name, plan).groups


def metrics(group: Group, name: str) -> pd.DataFrame:
    """Metrics of a map by category and seed, in the plan's order."""
    values = {metric: group.pivot(name, metric).unstack() for metric in METRICS}
    return pd.DataFrame(values, dtype=float).dropna(how="all")


def sources(*plans: str) -> dict[str, pd.DataFrame]:
    """Metrics of what is compared, by category and seed: maps of the model, and variants of the ablation."""
    found: dict[str, pd.DataFrame] = {}
    for plan in plans:
        for group in groups(plan):
            if group.model == "npgmf" and plan == "ablation":
                found[group.variant] = metrics(group, "merged")
            elif group.model == "npgmf":
                found |= {name: metrics(group, name) for name in group.maps}
    return found


def by_seed(values: pd.Series) -> pd.DataFrame:
    """Values by category (row) and seed (column); a category that lacks a seed of another category is left out."""
    return values.unstack("seed").dropna(axis="columns", how="all").dropna()


def overall(values: pd.Series) -> pd.Series:
    """Mean over the categories by seed."""
    return values.unstack("seed").dropna(axis="columns").agg(fmean)


def less(found: Found, first: str, second: str) -> list[str]:
    """``first`` minus ``second`` for every metric: the mean over the categories that both have."""
    return [spread(by_seed(column).agg(fmean), signed=True) for _, column in (found[first] - found[second]).items()]


def verdict(values: Sequence[float]) -> str:
    """Whether a claim is supported: every seed shows it, and their mean exceeds their standard deviation."""
    if len(values) < 3:
        return ""
    clear = abs(fmean(values)) > stdev(values)
    if clear and min(values) > 0:
        return "yes"
    return "no, the opposite" if clear and max(values) < 0 else "undecided"


# claim, what is better, than what, metrics
CLAIMS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("the structural branch sees structural anomalies better", "structural", "logical", (AUROC[1], SPRO[1])),
    ("the logical branch sees logical anomalies better", "logical", "structural", (AUROC[0], SPRO[0])),
    ("eq. 11 is better than the logical branch", "1:3", "logical", MEANS),
    ("eq. 11 is better than the structural branch", "1:3", "structural", MEANS),
    ("weights 1:3 (logical : structural) are better than 3:1", "1:3", "3:1", MEANS[1:]),
    ("weights 1:3 are better than 1:1", "1:3", "1:1", MEANS[1:]),
)
PRIORS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("a prior vector helps the baseline", "learned", "baseline", MEANS),
    ("codebooks help the baseline", "codebooks", "baseline", MEANS),
    ("codebooks help beside a prior vector", "logical", "learned", MEANS),
    ("a prior vector helps beside codebooks", "logical", "codebooks", MEANS),
    ("control: a learned vector is better than a random one, with codebooks", "logical", "random_codebooks", MEANS),
)
PARTS = {
    "logical branch": "logical",
    "structural branch": "structural",
    "eq. 11 (1:3)": "1:3",
    "maximum of the calibrated maps": "maximum",
    "composition": "composition",
    "eq. 11 and composition": "merged",
}
CODES = {"without codebooks": "learned", "with codebooks": "logical", "trained on edited code maps": "edited_codes"}
CODE_GAPS = {
    "with less without": ("logical", "learned"),
    "edited less without": ("edited_codes", "learned"),
    "edited less with": ("edited_codes", "logical"),
}


def claims(found: Found, asked: Sequence[tuple[str, str, str, tuple[str, ...]]]) -> str:
    """Claims of the paper, one comparison each."""
    rows = []
    for claim, first, second, metrics in asked:
        for metric in metrics:
            gaps = by_seed((found[first] - found[second])[metric])
            values = list(gaps.agg(fmean))
            row = {"claim": claim, "metric": metric, "difference": spread(values, signed=True)}
            row |= {"categories x seeds": " x ".join(map(str, gaps.shape)), "supported": verdict(values)}
            rows.append(row)
    return table(rows)


def parts(found: Found, *, differences: bool = True) -> str:
    """Every part alone and merged, mean over categories."""
    rows = [
        {"map": text} | {metric: spread(overall(found[name][metric])) for metric in METRICS}
        for text, name in PARTS.items()
    ]
    if differences:
        for other in ("1:3", "structural"):
            title = f"merged less {'eq. 11' if other == '1:3' else 'the structural branch'}"
            rows.append({"map": title} | dict(zip(METRICS, less(found, "merged", other), strict=True)))
    return table(rows)


def parts_by_category(found: Found, chosen: Sequence[str]) -> str:
    """The same per category: a metric on logical / structural anomalies."""
    rows = []
    for text, name in PARTS.items():
        cells = found[name].groupby("category", sort=False)[list(chosen)].agg(spread)
        rows.append({"map": text} | cells.agg(" / ".join, axis="columns").to_dict())
    return table(rows)


def networks(found: Found, other: Found) -> str:
    """Image AUROC of the branches with two networks; not of the merged map, which in ``other`` is of version 0.1."""
    rows = []
    for title, values in (("EfficientNet-Lite0, logical branch at 256 px", found), ("MobileNetV2, 128 px", other)):
        for text, name in PARTS.items():
            if name not in ("merged", "maximum"):
                scores = {metric: spread(overall(values[name][metric])) for metric in AUROC}
                rows.append({"network": title, "map": text} | scores)
    return table(rows)


def costs(found: Found) -> str:
    """The merged map minus the best single part of each category and metric, chosen by its mean over seeds."""
    single = [name for name in PARTS.values() if name not in ("merged", "maximum")]
    rows = []
    for category in found["merged"].index.unique("category"):
        row: dict[str, str] = {"category": category}
        for metric in METRICS:
            values = {name: found[name].loc[category][metric] for name in single}
            best = max(single, key=lambda name: float(values[name].mean()))
            gap = spread(found["merged"].loc[category][metric] - values[best], signed=True)
            row[metric] = f"{gap} ({'eq. 11' if best == '1:3' else best})"
        rows.append(row)
    return table(rows)


def codebooks(found: Found) -> str:
    """The logical branch with, without and with edited codes, per category and over those that have them all."""
    rows = []
    for category in found["logical"].index.unique("category"):
        for text, name in CODES.items():
            if category in found[name].index.unique("category"):
                cells = found[name].loc[category].agg(spread)
                rows.append({"category": category, "logical branch": text} | cells.to_dict())
    for text, (first, second) in CODE_GAPS.items():
        number = len(by_seed((found[first] - found[second])[AUROC[0]]))
        row = {"category": f"mean of {number}", "logical branch": text}
        rows.append(row | dict(zip(METRICS, less(found, first, second), strict=True)))
    return table(rows)


def models() -> str:
    """Every model of the plan, mean over categories."""
    rows = []
    for group in groups("synthetic"):
        means = {metric: group.by_seed("merged", metric) for metric in (*AUROC, SPRO[2])}
        shown = {metric: spread(seeds) for metric, seeds in means.items()}
        rows.append({"model": group.name, "seeds": len(means[AUROC[0]]) or ""} | shown)
    return table(rows)


def photographs() -> str:
    """Maps of the model and the baselines on the photographs, which have logical anomalies only."""
    rows = []
    for group in groups("juice_bottle"):
        names = [name for name in ("logical", "structural", "1:3", "composition", "merged") if name in group.maps]
        for name in names:
            title = group.name if len(names) == 1 else f"{group.name}: {'eq. 11 (1:3)' if name == '1:3' else name}"
            rows.append(
                {"map": title} | {metric: spread(group.by_seed(name, metric)) for metric in (AUROC[0], SPRO[0])}
            )
    return table(rows)


def damage() -> str:
    """Parts and merged map on photographs of damaged things, with the cost of the training."""
    rows = []
    (group,) = groups("photographs")
    for category in group.measured_categories:
        (record,) = (record for (name, _), record in group.records.items() if name == category)
        for title, name in (("structural", "structural"), ("eq. 11 (preset `small`)", "1:3"), ("merged", "merged")):
            row = {"category": category.removesuffix("_reduced"), "map": title}
            row |= {metric: spread(group.of_category(category, name, metric)) for metric in PLAIN}
            if name == "merged":
                row["fit, s"] = f"{record['seconds']['fit']:.0f}"
                row["peak memory, MiB"] = f"{record['peak_memory']['resident_mib']:.0f}"
            rows.append(row)
    return table(rows)


def thresholds() -> str:
    """Every rule for the whole model, the model's own for each part."""
    rows = load("threshold")["rows"]
    return table([row for row in rows if row["part"] == "merged" or row["threshold"] == "1 in 100"])


def main() -> None:
    found, priors = sources("synthetic"), sources("mobilenet", "ablation")
    content = {
        "claims": claims(found, CLAIMS),
        "priors": claims(priors, PRIORS),
        "parts": parts(found),
        "categories": parts_by_category(found, AUROC[:2]),
        "places": parts_by_category(found, SPRO[:2]),
        "costs": costs(found),
        "networks": networks(found, priors),
        "codebooks": codebooks(priors),
        "merging": table(load("merging_study")["rows"]),
        "bank": table(load("bank_study")["rows"]),
        "threshold": thresholds(),
        "composition": table(load("composition_study")["rows"]),
    }
    fill(ROOT / "docs" / "findings.md", content)
    fill(
        ROOT / "README.md",
        {
            "results": parts(found, differences=False),
            "models": models(),
            "photographs": photographs(),
            "damage": damage(),
        },
    )


if __name__ == "__main__":
    main()

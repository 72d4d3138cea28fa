"""Rewrite the tables of docs/findings.md and of the README's results from the results files.

python studies/findings.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

import pandas as pd
from _common import ROOT, Row, fill, measured, records, table
from one_model import table_rows as one_model_rows

from anomalib_npgmf.benchmark.results import LOCO, Group
from anomalib_npgmf.benchmark.tables import spread

METRICS = list(LOCO)
AUROC, SPRO = METRICS[:3], METRICS[3:]
MEANS = (AUROC[2], SPRO[2])
Map = tuple[Group, str]  # records of a model, and the name of its map
Found = Mapping[str, Map]
Claim = tuple[str, str, str, Sequence[str]]  # claim, what is better, than what, metrics

CLAIMS: tuple[Claim, ...] = (
    ("the structural branch sees structural anomalies better", "structural", "logical", (AUROC[1], SPRO[1])),
    ("the logical branch sees logical anomalies better", "logical", "structural", (AUROC[0], SPRO[0])),
    ("eq. 11 is better than the logical branch", "1:3", "logical", MEANS),
    ("eq. 11 is better than the structural branch", "1:3", "structural", MEANS),
    ("weights 1:3 (logical : structural) are better than 3:1", "1:3", "3:1", MEANS[1:]),
    ("weights 1:3 are better than 1:1", "1:3", "1:1", MEANS[1:]),
)
PRIORS: tuple[Claim, ...] = (
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
SINGLE = {text: name for text, name in PARTS.items() if name not in ("merged", "maximum")}
CODES = {"without codebooks": "learned", "with codebooks": "logical", "trained on edited code maps": "edited_codes"}
CODE_GAPS = {
    "with less without": ("logical", "learned"),
    "edited less without": ("edited_codes", "learned"),
    "edited less with": ("edited_codes", "logical"),
}


def maps_of(*plans: str) -> dict[str, Map]:
    """What is compared: maps of the model, and variants of ablations."""
    found: dict[str, Map] = {}
    for plan in plans:
        for group in records(plan):
            if group.model == "npgmf":
                names = {group.variant: "merged"} if plan.endswith("ablation") else {name: name for name in group.maps}
                found |= {title: (group, name) for title, name in names.items()}
    return found


def cells(of: Map, metrics: Iterable[str], category: str | None = None) -> Row:
    """Metrics of a map, of a category or else of the mean over categories."""
    group, name = of
    return {metric: spread(group.values(name, metric, category)) for metric in metrics}


def gaps(found: Found, first: str, second: str, metric: str) -> pd.DataFrame:
    """``first`` minus ``second`` by seed (row) and category; only categories with a value for every seed are kept."""
    one, other = (group.pivot(name, metric) for group, name in (found[first], found[second]))
    return (one - other).dropna(how="all").dropna(axis="columns")


def less(found: Found, first: str, second: str) -> Row:
    """``first`` minus ``second`` for every metric: the mean over the categories that both have."""
    return {m: spread(gaps(found, first, second, m).agg(fmean, axis="columns"), signed=True) for m in METRICS}


def verdict(values: Sequence[float]) -> str:
    """Whether a claim is supported: every seed shows it, and their mean exceeds their standard deviation."""
    if len(values) < 3:
        return ""
    clear = abs(fmean(values)) > stdev(values)
    if clear and min(values) > 0:
        return "yes"
    return "no, the opposite" if clear and max(values) < 0 else "undecided"


def claims(found: Found, asked: Sequence[Claim]) -> str:
    """Claims of the paper, one comparison each."""
    rows = []
    for claim, first, second, metrics in asked:
        for metric in metrics:
            differences = gaps(found, first, second, metric)
            values = list(differences.agg(fmean, axis="columns"))
            row = {"claim": claim, "metric": metric, "difference": spread(values, signed=True)}
            row |= {"categories x seeds": "{1} x {0}".format(*differences.shape), "supported": verdict(values)}
            rows.append(row)
    return table(rows)


def parts(found: Found, *, differences: bool = True) -> str:
    """Every part alone and merged, mean over categories."""
    rows = [{"map": text} | cells(found[name], METRICS) for text, name in PARTS.items()]
    if differences:
        rows.append({"map": "merged less eq. 11"} | less(found, "merged", "1:3"))
        rows.append({"map": "merged less the structural branch"} | less(found, "merged", "structural"))
    return table(rows)


def parts_by_category(found: Found, chosen: Sequence[str]) -> str:
    """The same per category: a metric on logical / structural anomalies."""
    rows = []
    for text, name in PARTS.items():
        categories = found[name][0].measured_categories
        rows.append({"map": text} | {c: " / ".join(cells(found[name], chosen, c).values()) for c in categories})
    return table(rows)


def networks(found: Mapping[str, Found]) -> str:
    """Image AUROC of the branches by network; not of the merged map, which of MobileNetV2 is of version 0.1."""
    rows = [
        {"network": network, "map": text} | cells(maps[name], AUROC)
        for network, maps in found.items()
        for text, name in SINGLE.items()
    ]
    return table(rows)


def costs(found: Found) -> str:
    """The merged map minus the best single part of each category and metric, chosen by its mean over seeds."""
    rows = []
    for category in found["merged"][0].measured_categories:
        row: Row = {"category": category}
        for metric in METRICS:
            values = {name: found[name][0].values(found[name][1], metric, category) for name in PARTS.values()}
            best = max(SINGLE.values(), key=lambda name: float(values[name].mean()))
            gap = spread(values["merged"] - values[best], signed=True)
            row[metric] = f"{gap} ({'eq. 11' if best == '1:3' else best})"
        rows.append(row)
    return table(rows)


def codebooks(found: Found) -> str:
    """The logical branch with, without and with edited codes, per category and over those that have them all."""
    rows = [
        {"category": category, "logical branch": text} | cells(found[name], METRICS, category)
        for category in found["logical"][0].measured_categories
        for text, name in CODES.items()
        if category in found[name][0].measured_categories
    ]
    for text, (first, second) in CODE_GAPS.items():
        number = gaps(found, first, second, AUROC[0]).shape[1]
        rows.append({"category": f"mean of {number}", "logical branch": text} | less(found, first, second))
    return table(rows)


def models() -> str:
    """Every model of the two plans, by number of training images, mean over categories."""
    rows = []
    for plan, images in (("synthetic", 300), ("synthetic_60", 60)):
        for group in records(plan):
            row: Row = {"training images": images, "model": group.name}
            row["seeds"] = len(group.values("merged", AUROC[0])) or ""
            rows.append(row | cells((group, "merged"), (*AUROC, SPRO[2])))
    return table(rows)


def photographs() -> str:
    """Maps of the model and the baselines on the photographs, which have logical anomalies only."""
    rows = []
    for group in records("juice_bottle"):
        names = [name for name in ("logical", "structural", "1:3", "composition", "merged") if name in group.maps]
        for name in names:
            title = group.name if len(names) == 1 else f"{group.name}: {'eq. 11 (1:3)' if name == '1:3' else name}"
            rows.append({"map": title} | cells((group, name), (AUROC[0], SPRO[0])))
    return table(rows)


def folder() -> str:
    """What one command and a folder of pictures give."""
    rows = measured("folder")["rows"]
    kept = ("category", "training images", "image AUROC", "pixel AUROC", "minutes", "peak memory, MiB")
    return table([{name: row[name] for name in kept} for row in rows])


def main() -> None:
    found, few = maps_of("synthetic"), maps_of("synthetic_60")
    priors = maps_of("mobilenet", "mobilenet_ablation")
    # every rule for the merged score; for single branches only the model's own rule, 1 in 100
    thresholds = [r for r in measured("threshold")["rows"] if r["part"] == "merged" or r["threshold"] == "1 in 100"]
    content = {
        "claims": claims(found, CLAIMS),
        "priors": claims(maps_of("ablation"), PRIORS),
        "former priors": claims(priors, PRIORS),
        "parts": parts(found),
        "categories": parts_by_category(found, AUROC[:2]),
        "places": parts_by_category(found, SPRO[:2]),
        "costs": costs(found),
        "few": parts(few),
        "costs of few": costs(few),
        "networks": networks({"EfficientNet-Lite0, logical branch at 256 px": few, "MobileNetV2, 128 px": priors}),
        "codebooks": codebooks(priors),
        "one model": table(one_model_rows(measured("one_model")["cells"])),
        "threshold": table(thresholds),
        "learning curve": table([row for row in measured("learning_curve")["rows"] if row["part"] != "1:3"]),
        "merging": table(measured("merging_study")["rows"]),
        "bank": table(measured("bank_study")["rows"]),
        "composition": table(measured("composition_study")["rows"]),
    }
    content |= {"models": models(), "folder": folder()}
    results = {"results": parts(found, differences=False), "photographs": photographs()}
    fill(ROOT / "docs" / "findings.md", content)
    fill(ROOT / "README.md", results)


if __name__ == "__main__":
    main()

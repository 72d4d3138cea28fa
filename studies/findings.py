"""Rewrite the tables of docs/findings.md and of the README's results from the results files.

A figure that was not measured stays empty.

python studies/findings.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from _common import RESULTS, ROOT, Row, fill, load
from _common import spread as spread_of
from _common import table as table_of
from composition_study import table_rows as composition_rows
from merging_study import spread_rows
from merging_study import table_rows as merging_rows
from one_model import table_rows as one_model_rows

from anomalib_npgmf.benchmark.plan import load_plan
from anomalib_npgmf.benchmark.record import read

KINDS = ("logical", "structural", "mean")
AUROC, SPRO = ([f"{name} {kind}" for kind in KINDS] for name in ("AUROC", "sPRO@0.05"))
METRICS = [*AUROC, *SPRO]
MEANS = (AUROC[2], SPRO[2])
Found = Mapping[str, pd.DataFrame]  # metrics of a map or variant, by category and seed
table, spread = partial(table_of, aligned=True), partial(spread_of, scale=100.0)  # in per cent


def records(plan: str) -> tuple[pd.DataFrame, list[str]]:
    """Metrics of all records by model, variant, map, category and seed, and the names of the plan's models."""
    folder = RESULTS / plan
    planned = [cell.key for cell in load_plan(ROOT / "configs" / "plans" / f"{plan}.yaml").cells]
    measured = [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("seed*.json"))]
    rows, index = [], []
    for key in sorted(measured, key=lambda key: planned.index(key) if key in planned else len(planned)):
        record = read(folder / f"{key}.json")
        model, variant, category, seed = key.split("/")
        for name, found in record["metrics"].items() if record["status"] == "finished" else ():
            values = (found.get("loco_auroc", {}), found.get("spro", {}).get("0.05", {}))
            rows.append([kinds.get(kind) for kinds in values for kind in KINDS])
            index.append((model, variant, name, category, int(seed.removeprefix("seed"))))
    names = dict.fromkeys(key.rsplit("/", 2)[0].removesuffix("/default") for key in planned)
    levels = ["model", "variant", "map", "category", "seed"]
    return pd.DataFrame(rows, pd.MultiIndex.from_tuples(index, names=levels), METRICS, dtype=float), list(names)


def sources(*plans: str) -> dict[str, pd.DataFrame]:
    """Metrics of what is compared, by category and seed: maps of the model, and variants of the ablation."""
    found: dict[str, pd.DataFrame] = {}
    for plan in plans:
        level = "variant" if plan == "ablation" else "map"
        rows = records(plan)[0].loc["npgmf"]
        rows = rows.xs("merged", level="map") if plan == "ablation" else rows
        for name, part in rows.groupby(level, sort=False):
            found[str(name)] = part.droplevel([n for n in part.index.names if n not in ("category", "seed")])
    return found


def by_seed(values: pd.Series) -> pd.DataFrame:
    """One column per seed with all its categories; a category is left out if it lacks a seed that another one has."""
    return values.unstack("seed").dropna(axis="columns", how="all").dropna()


def overall(values: pd.Series) -> pd.Series:
    """Mean over the categories by seed."""
    return values.unstack("seed").dropna(axis="columns").agg(fmean)


def less(found: Found, first: str, second: str) -> list[str]:
    """``first`` less ``second``: the mean over the categories that both have, for every metric."""
    return [spread(by_seed(column).agg(fmean), "+") for _, column in (found[first] - found[second]).items()]


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
    ("a prior vector helps the baseline", "learned", "baseline", MEANS),
    ("codebooks help the baseline", "codebooks", "baseline", MEANS),
    ("codebooks help beside a prior vector", "logical", "learned", MEANS),
    ("a prior vector helps beside codebooks", "logical", "codebooks", MEANS),
    ("control: a learned vector is better than a random one, with codebooks", "logical", "random_codebooks", MEANS),
)
LEVERS = {
    "logical branch": "logical",
    "structural branch": "structural",
    "eq. 11 (1:3)": "1:3",
    "maximum of the calibrated maps": "maximum",
    "composition, whole image alone": "amounts",
    "composition alone": "composition",
    "eq. 11 and composition": "1:3+composition",
    "maximum and composition, whole image": "maximum+amounts",
    "maximum and composition (as in `plus`)": "merged",
}
CODES = {"without codebooks": "learned", "with codebooks": "logical", "trained on edited code maps": "edited_codes"}
CODE_GAPS = {
    "with less without": ("logical", "learned"),
    "edited less without": ("edited_codes", "learned"),
    "edited less with": ("edited_codes", "logical"),
}


def claims(found: Found) -> str:
    """The paper's claims, one comparison each."""
    rows = []
    for claim, first, second, metrics in CLAIMS:
        for metric in metrics:
            row = {"claim": claim, "metric": metric, "difference": "", "categories x seeds": "", "supported": ""}
            if first in found and second in found:
                gaps = by_seed((found[first] - found[second])[metric])
                values = list(gaps.agg(fmean))
                shape = " x ".join(map(str, gaps.shape))
                row |= {"difference": spread(values, "+"), "categories x seeds": shape, "supported": verdict(values)}
            rows.append(row)
    return table(rows)


def levers(found: Found, *, differences: bool = True) -> str:
    """Every lever alone and together, mean over categories."""
    names = {text: name for text, name in LEVERS.items() if name in found}
    rows = [
        {"map": text} | {metric: spread(overall(found[name][metric])) for metric in METRICS}
        for text, name in names.items()
    ]
    if differences:
        rows = rows[2:] + [
            {"map": f"{text}, less eq. 11"} | dict(zip(METRICS, less(found, name, "1:3"), strict=True))
            for text, name in list(names.items())[3:]
        ]
    return table(rows)


def levers_by_category(found: Found) -> str:
    """The same per category: image AUROC on logical / structural anomalies."""
    rows = []
    for text, name in LEVERS.items():
        if name in found:
            cells = found[name].groupby("category", sort=False)[AUROC[:2]].agg(spread)
            rows.append({"map": text} | cells.agg(" / ".join, axis="columns").to_dict())
    return table(rows)


def conditions(found: Found, without: str) -> str:
    """What was asked of the composition, category by category: ``plus`` less another rule."""
    gaps = (found["merged"] - found[without])[[*AUROC, SPRO[2]]]
    rows = [
        {"category": category, AUROC[0]: spread(found["merged"].loc[category][AUROC[0]])}
        | {f"difference, {metric}": spread(values, "+") for metric, values in gaps.loc[category].items()}
        for category in found["merged"].index.unique("category")
    ]
    return table(rows)


def codebooks(found: Found) -> str:
    """The logical branch with, without and with edited codes, per category and over those that have them all."""
    rows = []
    for category in found["logical"].index.unique("category"):
        for text, name in CODES.items():
            if name in found and category in found[name].index.unique("category"):
                cells = found[name].loc[category].agg(spread)
                rows.append({"category": category, "logical branch": text} | cells.to_dict())
    for text, (first, second) in CODE_GAPS.items():
        if first in found and second in found:
            number = len(by_seed((found[first] - found[second])[AUROC[0]]))
            row = {"category": f"mean of {number}", "logical branch": text}
            rows.append(row | dict(zip(METRICS, less(found, first, second), strict=True)))
    return table(rows)


def study(name: str, rows_of: Callable[[Any], Sequence[Row]], key: str = "cells") -> str:
    """Table of a study's results file."""
    cells = load(name).get(key)
    return table(rows_of(cells)) if cells else "Not measured yet."


def models() -> str:
    """Every model of the plan, mean over categories."""
    frame, names = records("synthetic")
    merged = dict(list(frame.xs("merged", level="map").groupby(["model", "variant"])))
    rows = []
    for name in names:
        model, _, variant = name.partition("/")
        values = merged.get((model, variant or "default"), frame.iloc[:0])
        means = {metric: list(overall(values[metric])) for metric in (*AUROC, SPRO[2])}
        shown = {metric: spread(seeds) for metric, seeds in means.items()}
        rows.append({"model": name, "seeds": len(means[AUROC[0]]) or ""} | shown)
    return table(rows)


def main() -> None:
    found = sources("synthetic", "ablation")
    content = {
        "claims": claims(found),
        "levers": levers(found),
        "categories": levers_by_category(found),
        "conditions": conditions(found, "1:3"),
        "read-out": conditions(found, "maximum"),
        "cells": conditions(found, "maximum+amounts"),
        "more images": conditions(sources("more_test_images"), "maximum"),
        "codebooks": codebooks(found),
        "one model": study("one_model", one_model_rows),
        "merging": study("merging_study", merging_rows),
        "spread": study("merging_study", spread_rows, "spreads"),
        "composition": study("composition_study", composition_rows),
    }
    fill(ROOT / "docs" / "findings.md", content)
    fill(ROOT / "README.md", {"results": levers(found, differences=False), "models": models()})
    print(content["claims"], content["levers"], content["conditions"], sep="\n\n")


if __name__ == "__main__":
    main()

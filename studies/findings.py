"""Rewrite the tables of docs/findings.md and of the README's results from the results files.

A figure that was not measured stays empty.

python studies/findings.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from _common import RESULTS
from composition_study import table_rows as composition_rows
from merging_study import spread_rows
from merging_study import table_rows as merging_rows
from one_model import table_rows as one_model_rows

from anomalib_npgmf.benchmark.plan import load_plan
from anomalib_npgmf.benchmark.report_records import AUROC, SPRO, Group, Metric, Spread, load_results, spread
from anomalib_npgmf.benchmark.tables import percent, table

ROOT = Path(__file__).parents[1]
METRICS = (*AUROC, *SPRO)
HEADINGS = [f"{name} {kind}" for name in ("AUROC", "sPRO@0.05") for kind in ("logical", "structural", "mean")]


class Source(NamedTuple):
    """One map of one model in one variant."""

    group: Group
    name: str


def sources(*plans: str) -> dict[str, Source]:
    """What is compared, by a short name."""
    found: dict[str, Source] = {}
    for plan in plans:
        for group in load_results(RESULTS / plan, load_plan(ROOT / "configs" / "plans" / f"{plan}.yaml")).groups:
            if plan == "ablation":
                found[group.variant] = Source(group, "merged")
            elif group.model == "npgmf":
                found |= {name: Source(group, name) for name in group.maps}
    return found


def shared(first: Source, second: Source) -> tuple[list[str], list[int]]:
    """Categories that both have with all of those seeds that both have anywhere."""
    cells = first.group.records.keys() & second.group.records.keys()
    seeds = sorted({seed for _, seed in cells})
    return [c for c in first.group.categories if all((c, seed) in cells for seed in seeds)], seeds


def differences(first: Source, second: Source, metric: Metric, categories: Sequence[str] | None = None) -> list[float]:
    """``first`` less ``second`` for every seed: mean over those categories, or over all that both have."""
    common, seeds = shared(first, second)
    found = []
    for seed in seeds:
        pairs = [
            [source.group.value(category, seed, source.name, metric) for source in (first, second)]
            for category in categories or common
        ]
        gaps = [a - b for a, b in pairs if a is not None and b is not None]
        if gaps and len(gaps) == len(pairs):
            found.append(fmean(gaps))
    return found


def verdict(values: Sequence[float]) -> str:
    """Whether seeds agree: a claim is supported if every seed shows it and their mean exceeds their deviation."""
    found = spread(values)
    if found is None or found.std is None or len(values) < 3:
        return ""
    if all(value > 0 for value in values) and found.mean > found.std:
        return "yes"
    return "no, the opposite" if all(value < 0 for value in values) and -found.mean > found.std else "undecided"


CLAIMS: tuple[tuple[str, str, str, Metric], ...] = (
    ("the structural branch sees structural anomalies better", "structural", "logical", AUROC[1]),
    ("the structural branch sees structural anomalies better", "structural", "logical", SPRO[1]),
    ("the logical branch sees logical anomalies better", "logical", "structural", AUROC[0]),
    ("the logical branch sees logical anomalies better", "logical", "structural", SPRO[0]),
    ("eq. 11 is better than the logical branch", "1:3", "logical", AUROC[2]),
    ("eq. 11 is better than the logical branch", "1:3", "logical", SPRO[2]),
    ("eq. 11 is better than the structural branch", "1:3", "structural", AUROC[2]),
    ("eq. 11 is better than the structural branch", "1:3", "structural", SPRO[2]),
    ("weights 1:3 (logical : structural) are better than 3:1", "1:3", "3:1", SPRO[2]),
    ("weights 1:3 are better than 1:1", "1:3", "1:1", SPRO[2]),
    ("a prior vector helps the baseline", "learned", "baseline", AUROC[2]),
    ("a prior vector helps the baseline", "learned", "baseline", SPRO[2]),
    ("codebooks help the baseline", "codebooks", "baseline", AUROC[2]),
    ("codebooks help the baseline", "codebooks", "baseline", SPRO[2]),
    ("codebooks help beside a prior vector", "logical", "learned", AUROC[2]),
    ("codebooks help beside a prior vector", "logical", "learned", SPRO[2]),
    ("a prior vector helps beside codebooks", "logical", "codebooks", AUROC[2]),
    ("a prior vector helps beside codebooks", "logical", "codebooks", SPRO[2]),
    ("control: a learned vector is better than a random one, with codebooks", "logical", "random_codebooks", AUROC[2]),
    ("control: a learned vector is better than a random one, with codebooks", "logical", "random_codebooks", SPRO[2]),
)


def claims(found: dict[str, Source]) -> str:
    """The paper's claims, one comparison each."""
    rows = []
    for text, first, second, metric in CLAIMS:
        name = HEADINGS[METRICS.index(metric)]
        values: list[float] = []
        number = ""
        if first in found and second in found:
            values = differences(found[first], found[second], metric)
            categories, seeds = shared(found[first], found[second])
            number = f"{len(categories)} x {len(seeds)}" if values else ""
        rows.append([text, name, percent(spread(values), signed=True), number, verdict(values)])
    return table(["claim", "metric", "difference", "categories x seeds", "supported"], rows)


LEVERS = {
    "eq. 11 (1:3)": "1:3",
    "maximum of the calibrated maps": "maximum",
    "composition, whole image alone": "amounts",
    "composition alone": "composition",
    "eq. 11 and composition": "1:3+composition",
    "maximum and composition, whole image": "maximum+amounts",
    "maximum and composition (as in `plus`)": "merged",
}


def levers(found: dict[str, Source]) -> str:
    """Every lever alone and together, mean over categories."""
    rows = []
    known = {text: name for text, name in LEVERS.items() if name in found}
    for text, name in known.items():
        rows.append([text, *(percent(found[name].group.overall(name, metric)) for metric in METRICS)])
    for text, name in list(known.items())[1:]:
        values = [spread(differences(found[name], found["1:3"], metric)) for metric in METRICS]
        rows.append([f"{text}, less eq. 11", *(percent(value, signed=True) for value in values)])
    return table(["map", *HEADINGS], rows)


def _of_category(source: Source, category: str, metric: Metric) -> Spread | None:
    return source.group.of_category(category, source.name, metric)


def levers_by_category(found: dict[str, Source]) -> str:
    """The same per category: image AUROC on logical / structural anomalies."""
    categories = found["1:3"].group.categories
    rows = []
    names = {"logical branch": "logical", "structural branch": "structural", **LEVERS}
    for text, name in ((text, name) for text, name in names.items() if name in found):
        cells = [
            " / ".join(percent(_of_category(found[name], category, metric)) for metric in AUROC[:2])
            for category in categories
        ]
        rows.append([text, *cells])
    return table(["map", *categories], rows)


def conditions(found: dict[str, Source], without: str) -> str:
    """What was asked of the composition, category by category: ``plus`` less another rule."""
    rows = []
    for category in found["1:3"].group.measured_categories:
        cells = [
            percent(spread(differences(found["merged"], found[without], metric, [category])), signed=True)
            for metric in (*AUROC, SPRO[2])
        ]
        rows.append([category, percent(_of_category(found["merged"], category, AUROC[0])), *cells])
    names = [f"difference, {name}" for name in ("AUROC logical", "AUROC structural", "AUROC mean", "sPRO@0.05 mean")]
    return table(["category", "AUROC logical", *names], rows)


CODES = {
    "without codebooks": "learned",
    "with codebooks": "logical",
    "trained on edited code maps": "edited_codes",
}


def codebooks(found: dict[str, Source]) -> str:
    """The logical branch with, without and with edited codes, per category and over those that have them all."""
    rows = []
    for category in found["logical"].group.categories:
        for text, name in CODES.items():
            values = [_of_category(found[name], category, metric) for metric in METRICS] if name in found else []
            if any(values):
                rows.append([category, text, *map(percent, values)])
    for text, first, second in (
        ("with less without", "logical", "learned"),
        ("edited less without", "edited_codes", "learned"),
        ("edited less with", "edited_codes", "logical"),
    ):
        if first in found and second in found:
            gaps = [spread(differences(found[first], found[second], metric)) for metric in METRICS]
            categories, _ = shared(found[first], found[second])
            rows.append([f"mean of {len(categories)}", text, *(percent(gap, signed=True) for gap in gaps)])
    return table(["category", "logical branch", *HEADINGS], rows)


def study(name: str, rows_of: Any, key: str = "cells") -> str:
    """Table of a study's results file."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return "Not measured yet."
    rows = rows_of(json.loads(path.read_text())[key])
    return table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows])


def readme_results(found: dict[str, Source]) -> str:
    """Every map of the model, mean over categories."""
    names = {"logical branch": "logical", "structural branch": "structural", **LEVERS}
    rows = [
        [text, *(percent(found[name].group.overall(name, metric)) for metric in METRICS)]
        for text, name in names.items()
        if name in found
    ]
    return table(["map", *HEADINGS], rows)


def readme_models() -> str:
    """Every model of the plan, mean over categories."""
    plan = load_plan(ROOT / "configs" / "plans" / "synthetic.yaml")
    rows = []
    for group in load_results(RESULTS / plan.name, plan).groups:
        seeds = len(group.by_seed("merged", AUROC[0]))
        cells = [percent(group.overall("merged", metric)) for metric in (*AUROC, SPRO[2])]
        rows.append([group.name, str(seeds) if seeds else "", *cells])
    return table(["model", "seeds", *HEADINGS[:3], HEADINGS[5]], rows)


def fill(page: Path, content: dict[str, str]) -> None:
    """Put the tables between their marks."""
    text = page.read_text(encoding="utf-8")
    for name, part in content.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = f"{text.split(start)[0]}{start}\n{part}\n{end}{text.split(end)[1]}"
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Fill the pages."""
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
    fill(ROOT / "README.md", {"results": readme_results(found), "models": readme_models()})
    print(content["claims"], content["levers"], content["conditions"], sep="\n\n")


if __name__ == "__main__":
    main()

"""Sections of a report: codebook statistics, costs, and the settings, hardware and versions of the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from anomalib_npgmf.benchmark.plan import key_of
from anomalib_npgmf.benchmark.record import Record
from anomalib_npgmf.benchmark.results import Group, Results
from anomalib_npgmf.benchmark.tables import table

# heading -> value of a record and number of decimals
_COSTS = {
    "epochs": ("training epochs", 0),
    "fit, s": ("seconds fit", 1),
    "test, s": ("seconds test", 1),
    "test, ms per image": ("ms", 0),
    "peak memory, MiB": ("peak_memory resident_mib", 0),
    "peak memory of the accelerator, MiB": ("peak_memory accelerator_mib", 0),
    "parameters": ("model parameters", 0),
    "trained": ("model trained_parameters", 0),
    "bank, patches": ("model bank_patches", 0),
}


def codebooks(group: Group) -> str:
    """Perplexity and dead codes per level at the end of the training, by category; empty without codebooks."""
    means = _means(group)
    levels = sorted(int(name.rpartition("_")[2]) for name in means.columns if name.startswith("training perplexity_"))
    columns = {
        f"{what}, level {level}": (f"training {what.replace(' ', '_')}_{level}", 1)
        for level in levels
        for what in ("perplexity", "dead codes")
    }
    return f"Means over seeds, in the last epoch.\n\n{_table(means, columns)}" if levels else ""


def costs(group: Group) -> str:
    """Times, memory and model size by category."""
    text = "Means over seeds. The test includes reading the images and every map above, not the metrics."
    return f"{text}\n\n{_table(_means(group), _COSTS)}"


def _means(group: Group) -> pd.DataFrame:
    """Means over seeds by category, of values named as ``training epochs``."""
    rows: list[dict[str, Any]] = []
    for record in group.records.values():
        images = len(record["images"])
        rows.append({"category": record["cell"]["category"]})
        rows[-1]["ms"] = 1000 * record["seconds"]["test"] / images if images else None
        rows[-1] |= {part: record[part] for part in ("training", "seconds", "model", "peak_memory")}
    means = pd.json_normalize(rows, sep=" ").groupby("category").mean(numeric_only=True)
    return means.reindex(group.measured_categories)


def _table(means: pd.DataFrame, columns: Mapping[str, tuple[str, int]]) -> str:
    known = {title: (means[name], digits) for title, (name, digits) in columns.items() if name in means}
    texts = {
        title: ["" if pd.isna(value) else f"{value:.{digits}f}" for value in values]
        for title, (values, digits) in known.items()
    }
    return table(["category", *known], list(zip(means.index, *texts.values(), strict=True)))


def origin(results: Results) -> str:
    """Settings, hardware, versions, weights and commands of the finished cells, each with the number of cells."""
    lines = []
    for group in results.groups:
        lines += _counted(group.name, group.records.values(), _settings)
    kinds: dict[str, Callable[[Record], str]] = {
        "hardware": lambda r: _pairs(r["hardware"]),
        "versions": lambda r: _pairs({name: v for name, v in r["versions"].items() if name != "commit"}),
        "commit": lambda r: r["versions"].get("commit", ""),
        "weights, SHA-256": lambda r: _pairs(r["weights"]),
        # without the choice of the cell: the command of the whole run
        "command": lambda r: f"`{r['command']}`".replace(f" --only {key_of(r['cell'])}", ""),
    }
    for kind, text_of in kinds.items():
        lines += _counted(kind, results.records, text_of)
    if days := sorted(record["started"][:10] for record in results.records):
        lines.append("- run: " + " to ".join(dict.fromkeys((days[0], days[-1]))))
    return "\n".join(lines)


def _settings(record: Record) -> str:
    cell = record["cell"]
    # category and seed differ between the cells of a plan, so they are no settings
    data = {name: value for name, value in cell["data_args"].items() if name not in ("category", "seed")}
    parts = ((cell["model_class"], cell["model_args"]), (cell["data_class"], data), ("trainer", cell["trainer"]))
    return "; ".join(f"{name} `{json.dumps(arguments, sort_keys=True)}`" for name, arguments in parts)


def _counted(title: str, records: Any, text_of: Callable[[Record], str]) -> list[str]:
    """A line for each text, with its number of records where there are several."""
    found = Counter(map(text_of, records))
    return [f"- {title}{f' ({n} cells)' if len(found) > 1 else ''}: {text}" for text, n in found.items() if text]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())

"""What results cost, what the codebooks looked like, and what everything was made with."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from anomalib_npgmf.benchmark.report_records import Group, Record, Results, Spread, spread
from anomalib_npgmf.benchmark.tables import EMPTY, plain, table

_LEVEL = re.compile(r"perplexity_(\d+)")


def codebooks(group: Group) -> str:
    """Perplexity and dead codes per level at the end of the training, by category; empty without codebooks."""
    levels = sorted({int(m[1]) for r in group.records.values() for name in r["training"] if (m := _LEVEL.match(name))})
    if not levels:
        return EMPTY
    header = ["category", *(f"{what}, level {level}" for level in levels for what in ("perplexity", "dead codes"))]
    rows = []
    for category in group.measured_categories:
        cells = []
        for level in levels:
            cells.append(plain(_over_seeds(group, category, "training", f"perplexity_{level}"), 1))
            cells.append(plain(_over_seeds(group, category, "training", f"dead_codes_{level}"), 1))
        rows.append([category, *cells])
    return "Means over seeds, in the last epoch.\n\n" + table(header, rows)


def costs(group: Group) -> str:
    """Times, memory and size by category."""

    def per_image(category: str) -> Spread | None:
        records = _of_category(group, category)
        return spread([1000 * r["seconds"]["test"] / len(r["images"]) for r in records if r["images"]])

    columns: dict[str, Callable[[str], str]] = {
        "epochs": lambda c: plain(_over_seeds(group, c, "training", "epochs")),
        "fit, s": lambda c: plain(_over_seeds(group, c, "seconds", "fit"), 1),
        "test, s": lambda c: plain(_over_seeds(group, c, "seconds", "test"), 1),
        "test, ms per image": lambda c: plain(per_image(c)),
        "peak memory, MiB": lambda c: plain(_over_seeds(group, c, "peak_memory", "resident_mib")),
        "peak memory of the accelerator, MiB": lambda c: plain(_over_seeds(group, c, "peak_memory", "accelerator_mib")),
        "parameters": lambda c: plain(_over_seeds(group, c, "model", "parameters")),
        "trained": lambda c: plain(_over_seeds(group, c, "model", "trained_parameters")),
        "bank, patches": lambda c: plain(_over_seeds(group, c, "model", "bank_patches")),
    }
    categories = group.measured_categories
    columns = {name: value for name, value in columns.items() if any(map(value, categories))}
    rows = [[category, *(value(category) for value in columns.values())] for category in categories]
    text = "Means over seeds. The test includes reading the images and every map above, not the metrics."
    return f"{text}\n\n{table(['category', *columns], rows)}"


def origin(results: Results) -> str:
    """Settings, hardware, versions, weights and commands of the finished cells, each with the number of cells."""
    lines = []
    for group in results.groups:
        settings = _count(list(group.records.values()), _settings)
        lines += [f"- {group.name}{_times(count, settings)}: {text}" for text, count in settings.items()]
    kinds: dict[str, Callable[[Record], str]] = {
        "hardware": lambda r: _pairs(r["hardware"]),
        "versions": lambda r: _pairs({name: v for name, v in r["versions"].items() if name != "commit"}),
        "commit": lambda r: str(r["versions"].get("commit", "")),
        "weights, SHA-256": lambda r: _pairs(r["weights"]),
        "command": lambda r: f"`{_without_cell(r)}`",
    }
    for kind, of in kinds.items():
        found = _count(results.records, of)
        lines += [f"- {kind}{_times(count, found)}: {text}" for text, count in found.items() if text]
    if days := sorted(record["started"][:10] for record in results.records):
        lines.append(f"- run: {days[0]}" + (f" to {days[-1]}" if days[-1] != days[0] else ""))
    return "\n".join(lines)


def _of_category(group: Group, category: str) -> list[Record]:
    return [record for (name, _), record in group.records.items() if name == category]


def _over_seeds(group: Group, category: str, part: str, name: str) -> Spread | None:
    records = _of_category(group, category)
    return spread([record[part][name] for record in records if name in record[part]])


def _settings(record: Record) -> str:
    cell = record["cell"]
    # what differs between the cells of a plan says nothing about the settings
    data = {name: value for name, value in cell["data_args"].items() if name not in ("category", "seed")}
    parts = ((cell["model_class"], cell["model_args"]), (cell["data_class"], data), ("trainer", cell["trainer"]))
    return "; ".join(f"{name} `{json.dumps(arguments, sort_keys=True)}`" for name, arguments in parts)


def _without_cell(record: Record) -> str:
    """A record's command without the choice of its cell: the command of the whole run."""
    cell = "{model}/{variant}/{category}/seed{seed}".format(**record["cell"])
    return str(record["command"]).replace(f" --only {cell}", "")


def _count(records: list[Record], text_of: Callable[[Record], str]) -> Counter[str]:
    return Counter(map(text_of, records))


def _times(count: int, found: Counter[str]) -> str:
    return f" ({count} cells)" if len(found) > 1 else ""


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())

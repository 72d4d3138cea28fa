"""Rewrite the tables of docs/speed.md from the results files; a figure that was not measured stays empty.

python studies/speed.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from _common import RESULTS, table

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
NARROW_ON = "filled_vials"  # the category where the logical branch is what finds the anomalies
Row = dict[str, Any]


def load(name: str) -> Row:
    """A results file; without rows if it was not written yet."""
    path = RESULTS / f"{name}.json"
    content: Row = json.loads(path.read_text()) if path.exists() else {"rows": [], "ratios": []}
    return content


def pick(rows: list[Row], column: str, **where: object) -> float | None:
    """The column of the first row that matches."""
    found = [row.get(column) for row in rows if all(row.get(key) == value for key, value in where.items())]
    return found[0] if found else None


def line(what: str, target: str, *values: float | None, unit: str = "") -> Row:
    """A row of the table of targets."""
    shown = " / ".join(f"{value:.3g}{unit}" for value in values if value is not None)
    return {"what": what, "target": target, "measured": shown}


def targets() -> list[Row]:
    """Every ratio that was aimed at; with two values, wall time and CPU time."""
    coreset, build, cover, search = (
        load(name)["rows"] for name in ("coreset", "bank_build", "bank_cover", "bank_search")
    )
    radii = [pick(coreset, "covering_radius", method=method, dtype="float32") for method in ("fast", "exact")]
    radius = radii[0] / radii[1] if radii[0] and radii[1] else None
    rows = [
        line(
            f"coreset, `{method}`, against `KCenterGreedy`",
            f"at least {least} times faster",
            *(pick(coreset, f"speedup_{clock}", method=method, dtype="float32") for clock in ("wall", "cpu")),
        )
        for method, least in (("fast", 20), ("exact", 3))
    ]
    rows += [
        line(
            f"coreset, memory beside a {dtype} embedding",
            "at most 0.25 of it",
            max(
                (row["added_memory"] for row in coreset if row["dtype"] == dtype and "added_memory" in row),
                default=None,
            ),
        )
        for dtype in ("float32", "float16")
    ]
    rows += [
        line("coreset, covering radius of `fast` over that of `exact`", "at most 1.005", radius),
        line("bank of 350 images at 512 pixels (8.8 GB of patches), peak memory", "below 6 GB", pick(build, "peak_gb")),
        line(
            "its covering radius over the one-shot selection's",
            "reported",
            pick(cover, "quotient", ratio=0.01, keep=0.25),
        ),
        line(
            "search, over anomalib's (2,048 patches)",
            "reported",
            pick(search, "ratio_cpu", bank=2048, search="float32"),
        ),
    ]
    for ratio in load("latency")["ratios"] or [{"backbone": "wide_resnet50_2", "batch": batch} for batch in (1, 16)]:
        place = f"{ratio['backbone']}, batch {ratio['batch']}"
        for key, name, most in (("patchcore", "PatchCore", 1.2), ("both", "PatchCore + ReverseDistillation", 0.7)):
            values = [ratio.get(f"to_{key}_{clock}") for clock in ("wall", "cpu")]
            if key == "patchcore" or "resnet" in ratio["backbone"]:
                rows.append(line(f"whole model over {name}, {place}", f"at most {most}", *values))
    trained = load("training")["rows"]
    for backbone in dict.fromkeys(row["backbone"] for row in trained) or ["wide_resnet50_2"]:
        values = [
            pick(trained, f"to_rd_{clock}", backbone=backbone, variant="logical branch") for clock in ("wall", "cpu")
        ]
        if "resnet" in backbone:
            rows.append(
                line(f"epoch of the logical branch over ReverseDistillation's, {backbone}", "at most 1.5", *values)
            )
        for variant in ("channels last", "bf16", "compiled", "feature cache"):
            values = [
                pick(trained, f"to_ours_{clock}", backbone=backbone, variant=variant) for clock in ("wall", "cpu")
            ]
            if variant in ("channels last", "feature cache") or any(values):
                rows.append(
                    line(f"epoch with {variant} over one without, {backbone}", "below 1 where it pays", *values)
                )
    return rows


def source(result: Row) -> str:
    """How the figures of a results file came about."""
    if not result["rows"]:
        return "Not measured yet."
    own = result["environment"]
    return (
        f"`{result['command']}` on {own['cpu']}, {own['threads']} thread(s), torch {own['torch']}, load average "
        f"{own['load_average']:.0f} at the end."
    )


def latency(result: Row) -> str:
    """Every model and part, and what the quickest possible logical branch would leave."""
    rows = [{key: value for key, value in row.items() if key != "turns"} for row in result["rows"]]
    if not rows:
        return source(result)
    turns = statistics.median(row["turns"] for row in result["rows"])
    bank = ", ".join(f"{r['bank_mb']:.3g} MB ({r['backbone']})" for r in result["ratios"] if r["batch"] == 1)
    return f"{table(rows)}\n\nMedian of {turns:g} turns. Bank: {bank}. {source(result)}"


def training(result: Row) -> str:
    """Every variant of an epoch."""
    columns = ("backbone", "variant", "batch", "wall_s", "cpu_s", "to_rd_wall", "to_ours_wall")
    rows = [{key: "" if row[key] is None else row[key] for key in columns} for row in result["rows"]]
    return f"{table(rows)}\n\n{source(result)}" if rows else source(result)


def accuracy(result: Row) -> str:
    """What the bank's fast paths leave of the accuracy."""
    return f"{table(result['rows'])}\n\n{source(result)}" if result["rows"] else source(result)


def narrow() -> str:
    """What the logical branch of preset ``fast`` leaves of the accuracy, against that of preset ``small``."""
    kinds = ("logical", "structural", "mean")
    rows = []
    for what, pattern, name in (
        ("full width, levels 3 to 5 scored", "synthetic/npgmf/default", "logical"),
        ("at most 24 channels, levels 2 to 4 used and scored", "ablation/npgmf/narrow_levels", "merged"),
    ):
        records = [json.loads(path.read_text()) for path in sorted((RESULTS / pattern / NARROW_ON).glob("seed*.json"))]
        metrics = [record["metrics"][name] for record in records if record["status"] == "finished"]
        row: Row = {"logical branch": what, "seeds": len(metrics)}
        for title, value in (("AUROC", lambda m: m["loco_auroc"]), ("sPRO@0.05", lambda m: m["spro"]["0.05"])):
            for kind in kinds:
                values = [100 * value(m)[kind] for m in metrics]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                row[f"{title} {kind}"] = f"{statistics.mean(values):.1f}{spread}" if values else ""
        rows.append(row)
    return table(rows)


def main() -> None:
    """Fill the page."""
    text = PAGE.read_text()
    content = {
        "targets": table(targets()),
        "accuracy": accuracy(load("bank_accuracy")),
        "narrow": narrow(),
        "latency": latency(load("latency")),
        "training": training(load("training")),
    }
    for name, part in content.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = f"{text.split(start)[0]}{start}\n{part}\n{end}{text.split(end)[1]}"
    PAGE.write_text(text)
    print(content["targets"])


if __name__ == "__main__":
    main()

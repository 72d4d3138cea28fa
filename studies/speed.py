"""Rewrite the tables of docs/speed.md from the results files; a value that was not measured stays empty.

python studies/speed.py
"""

from __future__ import annotations

from statistics import median

from _common import RESULTS, ROOT, Row, command_of, fill, load, section, table

from anomalib_npgmf.benchmark.results import LOCO, load_results
from anomalib_npgmf.benchmark.tables import spread

NARROW_ON = "filled_vials"  # the category where the logical branch is what finds the anomalies
CLOCKS = ("wall", "cpu")
END = " at the end."


def pick(name: str, columns: str | list[str], rows: str = "rows", **where: object) -> list[float]:
    """Values of the columns in the first row that fits ``where``; what was not measured is left out."""
    for row in load(name).get(rows, []):
        if all(row.get(key) == value for key, value in where.items()):
            found = (row.get(column) for column in ([columns] if isinstance(columns, str) else columns))
            return [value for value in found if value is not None]
    return []


def targets() -> str:
    """Every ratio with its target; two values are wall time and CPU time."""
    rows: list[Row] = []

    def add(what: str, target: str, values: list[float]) -> None:
        rows.append({"what": what, "target": target, "measured": " / ".join(f"{value:.3g}" for value in values)})

    for method, least in (("fast", 20), ("exact", 3)):
        values = pick("coreset", [f"speedup_{clock}" for clock in CLOCKS], method=method, dtype="float32")
        add(f"coreset, `{method}`, against `KCenterGreedy`", f"at least {least} times faster", values)
    for dtype in ("float32", "float16"):
        added = [row.get("added_memory", 0.0) for row in load("coreset")["rows"] if row["dtype"] == dtype]
        add(f"coreset, memory beside a {dtype} embedding", "at most 0.25 of it", [max(added)] if added else [])
    fast, exact = (pick("coreset", "covering_radius", method=m, dtype="float32") for m in ("fast", "exact"))
    radius = [a / b for a, b in zip(fast, exact, strict=True)]
    add("coreset, covering radius of `fast` over that of `exact`", "at most 1.005", radius)
    what = "bank of 350 images at 512 pixels (8.8 GB of patches), peak memory"
    add(what, "below 6 GB", pick("bank_build", "peak_gb"))
    covered = pick("bank_cover", "quotient", ratio=0.01, keep=0.25)
    add("its covering radius over the one-shot selection's", "reported", covered)
    searched = pick("bank_search", "ratio_cpu", bank=2048, search="float32")
    add("search, over anomalib's (2,048 patches)", "reported", searched)
    for place in load("latency").get("ratios", []):
        where = {key: place[key] for key in ("backbone", "batch")}
        for key, name, most in (("patchcore", "PatchCore", 1.2), ("both", "PatchCore + ReverseDistillation", 0.7)):
            if key == "patchcore" or "resnet" in place["backbone"]:
                values = pick("latency", [f"to_{key}_{clock}" for clock in CLOCKS], "ratios", **where)
                add(f"whole model over {name}, {place['backbone']}, batch {place['batch']}", f"at most {most}", values)
    for backbone in dict.fromkeys(row["backbone"] for row in load("training")["rows"]):
        values = pick("training", [f"to_rd_{clock}" for clock in CLOCKS], backbone=backbone, variant="logical branch")
        if values:
            add(f"epoch of the logical branch over ReverseDistillation's, {backbone}", "at most 1.5", values)
        for variant in ("channels last", "compiled", "feature cache"):
            values = pick("training", [f"to_ours_{clock}" for clock in CLOCKS], backbone=backbone, variant=variant)
            if values:
                add(f"epoch with {variant} over one without, {backbone}", "below 1 where it pays", values)
    return table(rows)


def latency() -> str:
    """Latency of every model and branch."""
    result = load("latency")
    turns = median(row["turns"] for row in result["rows"])
    bank = ", ".join(f"{r['bank_mb']:.3g} MB ({r['backbone']})" for r in result["ratios"] if r["batch"] == 1)
    columns = [column for column in result["rows"][0] if column != "turns"]
    return section("latency", columns, f"Median of {turns:g} turns. Bank: {bank}. ") + END


def narrow() -> str:
    """Accuracy of the logical branch of preset ``fast`` against that of preset ``small``."""
    rows = []
    for what, plan, variant, name in (
        ("full width, levels 3 to 5 scored", "mobilenet", "default", "logical"),
        ("at most 24 channels, levels 2 to 4 used and scored", "ablation", "narrow_levels", "merged"),
    ):
        (group,) = (g for g in load_results(RESULTS / plan).groups if (g.model, g.variant) == ("npgmf", variant))
        values = {metric: 100 * group.of_category(NARROW_ON, name, metric) for metric in LOCO}
        row: Row = {"logical branch": what, "seeds": len(values[LOCO[0]])}
        rows.append(row | {metric: spread(seeds, scale=1) for metric, seeds in values.items()})
    return table(rows)


def gpu() -> str:
    """Latency of every preset on a GPU."""
    result = load("gpu")
    if not result["rows"]:
        return "Not measured yet."
    columns = ["preset", "what", "precision", "way", "batch", "gflop_per_image", "ms", "images_per_s", "peak_mb"]
    rows = [{name: row.get(name, "") or "" for name in columns} for row in result["rows"]]
    note = f"{table(rows)}\n\n{result['gpu']}, `{command_of(result)}`, torch {result['environment']['torch']}."
    if not (selected := load("gpu_bank"))["rows"]:
        return note
    return f"{note}\n\n{table(selected['rows'])}\n\n{selected['gpu']}, `{command_of(selected)}`."


def main() -> None:
    content = {
        "gpu": gpu(),
        "targets": targets(),
        "accuracy": section("bank_accuracy") + END,
        "narrow": narrow(),
        "latency": latency(),
        "training": section(
            "training", ["backbone", "variant", "batch", "wall_s", "cpu_s", "to_rd_wall", "to_ours_wall"]
        )
        + END,
    }
    fill(ROOT / "docs" / "speed.md", content)
    print(content["targets"])


if __name__ == "__main__":
    main()

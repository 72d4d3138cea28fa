"""Rewrite the tables of docs/speed.md and docs/large_banks.md from the results files.

python studies/speed.py
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from _common import ROOT, command_of, fill, frame_of, measured, records, section, table
from bank_search import SYNTHETIC

from anomalib_npgmf.benchmark.results import LOCO
from anomalib_npgmf.benchmark.tables import spread
from anomalib_npgmf.structural import MemoryBank

NARROW_ON = "filled_vials"  # the category where the logical branch is what finds the anomalies
NARROW = {  # logical branch: plan, variant and map
    "full width, levels 3 to 5 scored": ("mobilenet", "default", "logical"),
    "at most 24 channels, levels 2 to 4 used and scored": ("mobilenet_ablation", "narrow_levels", "merged"),
}
BUILT = ["images", "patches", "bank", "collect_cpu_s", "select_cpu_s", "added_gb", "search_cpu_ms"]
END = " at the end."


def targets() -> str:
    """Every ratio with its target; two values are wall time and CPU time."""
    rows: list[dict[str, str]] = []

    def add(what: str, target: str, found: pd.DataFrame, *columns: str) -> None:
        """Add the largest value of each column; what was not measured is left out."""
        if texts := [f"{value:.3g}" for value in found[list(columns)].astype(float).max().dropna()]:
            rows.append({"what": what, "target": target, "measured": " / ".join(texts)})

    coreset = frame_of("coreset")
    single = coreset[coreset.dtype == "float32"].set_index("method")
    for method, least in (("fast", 20), ("exact", 3)):
        what = f"coreset, `{method}`, against `KCenterGreedy`"
        add(what, f"at least {least} times faster", single.loc[[method]], "speedup_wall", "speedup_cpu")
    for dtype, found in coreset.groupby("dtype", sort=False):
        add(f"coreset, memory beside a {dtype} embedding", "at most 0.25 of it", found, "added_memory")
    radius = single.loc[["fast"], ["covering_radius"]] / single.covering_radius["exact"]
    add("coreset, covering radius of `fast` over that of `exact`", "at most 1.005", radius, "covering_radius")
    what = "bank of 350 images at 512 pixels (8.8 GB of patches in float32, stored in float16 and thinned), peak memory"
    add(what, "below 6 GB", frame_of("bank_build"), "peak_gb")
    covered = frame_of("bank_cover").query("ratio == 0.01 and keep == 0.25")
    add("its covering radius over the one-shot selection's", "reported", covered, "quotient")
    searched = frame_of("bank_search").query("bank == 2048 and search == 'float32'")
    add("search, over anomalib's (2,048 patches)", "reported", searched, "ratio_cpu")
    for (backbone, batch), found in frame_of("latency").groupby(["backbone", "batch"], sort=False):
        for key, name, most in (("patchcore", "PatchCore", 1.2), ("both", "PatchCore + ReverseDistillation", 0.7)):
            what = f"whole model over {name}, {backbone}, batch {batch}"
            add(what, f"at most {most}", found, f"to_{key}_wall", f"to_{key}_cpu")
    for (backbone, variant), found in frame_of("training").groupby(["backbone", "variant"], sort=False):
        if variant == "logical branch":
            what = f"epoch of the logical branch over ReverseDistillation's, {backbone}"
            add(what, "at most 1.5", found, "to_rd_wall", "to_rd_cpu")
        elif variant != "ReverseDistillation":
            what = f"epoch with {variant} over one without, {backbone}"
            add(what, "below 1 where it pays", found, "to_ours_wall", "to_ours_cpu")
    return table(rows)


def latency() -> str:
    """Latency of every model and branch."""
    found = frame_of("latency")
    banks = found[found.batch == 1].dropna(subset="bank_mb")
    bank = ", ".join(f"{row.bank_mb:.3g} MB ({row.backbone})" for row in banks.itertuples())
    columns = ["backbone", "batch", "what", "wall_ms", "cpu_ms", "gflop_per_image", "parameters_m"]
    return section("latency", columns, f"Median of {found.turns.median():g} turns. Bank: {bank}. ") + END


def narrow() -> str:
    """Accuracy of the logical branch of preset ``fast`` against that of preset ``small``."""
    rows = []
    for what, (plan, variant, name) in NARROW.items():
        (group,) = (g for g in records(plan) if (g.model, g.variant) == ("npgmf", variant))
        values = {metric: 100 * group.of_category(NARROW_ON, name, metric) for metric in LOCO}
        shown = {metric: spread(seeds, scale=1) for metric, seeds in values.items()}
        rows.append({"logical branch": what, "seeds": len(values[LOCO[0]])} | shown)
    return table(rows)


def gpu() -> str:
    """Latency of every preset on a GPU, and selection and search of the memory bank."""
    models, bank = measured("gpu"), measured("gpu_bank")
    columns = ["preset", "what", "precision", "way", "batch", "gflop_per_image", "ms", "images_per_s", "peak_mb"]
    rows = pd.DataFrame(models["rows"], dtype=object)[columns]
    made = f"{models['gpu']}, `{command_of(models)}`, torch {models['environment']['torch']}."
    return f"{table(rows)}\n\n{made}\n\n{table(bank['rows'])}\n\n{bank['gpu']}, `{command_of(bank)}`."


def growth() -> str:
    """Builds of growing size, with the slopes of log-log fits; of building only where no image is thinned."""
    logs = frame_of("growth")[BUILT].apply(np.log)
    whole = logs[np.exp(logs.patches) * 1536 * 4 <= MemoryBank(1.0).collect_bytes]
    fits = dict.fromkeys(("collect_cpu_s", "select_cpu_s", "added_gb"), whole) | {"search_cpu_ms": logs}
    slopes = ", ".join(f"{column} {np.polyfit(f.images, f[column], 1)[0]:.2f}" for column, f in fits.items())
    note = f"Exponents against the number of images: {slopes}; those of building among the builds that thin nothing."
    end = f"; {SYNTHETIC}. The machine was shared, so read the CPU times, not the wall times."
    return section("growth", BUILT, f"{note}\n\n") + end


def main() -> None:
    training = ["backbone", "variant", "batch", "wall_s", "cpu_s", "to_rd_wall", "to_ours_wall"]
    content = {
        "gpu": gpu(),
        "targets": targets(),
        "accuracy": section("bank_accuracy") + END,
        "narrow": narrow(),
        "latency": latency(),
        "training": section("training", training) + END,
    }
    fill(ROOT / "docs" / "speed.md", content)
    fill(ROOT / "docs" / "large_banks.md", {"growth": growth()})
    print(content["targets"])


if __name__ == "__main__":
    main()

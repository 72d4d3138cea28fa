"""Table VII of the paper: what the model costs, from the results file of ``studies/efficiency.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anomalib_npgmf.benchmark.tables import EMPTY, table

FILE = "efficiency.json"
_PUBLISHED = ["arXiv 2506.18544", "logical branch", "256", "125", EMPTY, "21", "47", EMPTY]


def efficiency(folder: Path) -> str:
    """The published values and the measured ones of every preset in the results file.

    Args:
        folder: Where ``efficiency.json`` lies; without it nothing is measured.

    Returns:
        Markdown: a table, and what the measured rows were made with.
    """
    header = ["model", "part", "px", "GFLOP", "parameters, M", "ms per image", "images per second", "bank, patches"]
    rows, note = [_PUBLISHED], ""
    path = folder / FILE
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows += [
            [
                f"preset `{row['preset']}`",
                row["what"],
                str(row["image_size"]),
                f"{row['gflop']:.1f}",
                f"{row['parameters_m']:.1f}",
                f"{row['cpu_ms']:.0f}",
                f"{1000 / row['cpu_ms']:.2f}",
                str(row["bank_patches"]),
            ]
            for row in found["rows"]
        ]
        made = found["environment"]
        note = (
            f"\n\nMeasured rows: `{found['command']}`, torch {made['torch']}, {made['cpu']}, one thread, "
            "CPU time of one image; operations count a multiplication and an addition as two. The paper's row is from "
            "an RTX 3090 and does not say how it counts; the structural branch alone takes more, counted either way."
        )
    return table(header, rows) + note

"""The method row by row: what the paper says, where the code is, which test checks it, what was chosen and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from _common import load

NOTE = (
    "What the paper states, or leaves open, part by part. The last column has this project's choice where something is "
    "open or the code deviates, with the reason, what was measured, and the setting that changes it (an argument of "
    "`Npgmf`, or a field of its `logical` or `structural`). Sections are the paper's; code is in `anomalib_npgmf/`."
)


def rows() -> list[dict[str, Any]]:
    """The rows: ``row``, ``section``, ``code`` and ``tests`` as ``file::name``, and ``choice`` where there is one."""
    found: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("method.yaml").read_text(encoding="utf-8"))
    return found


def sentences(folder: Path) -> dict[str, str]:
    """Sentences with measured results, by the placeholder that ``choice`` of a row has for them.

    Args:
        folder: Folder of the results files.
    """
    missing = "not measured"
    logical = {row["variant"]: row for row in load("logical_study", folder)["rows"]}
    found = {}
    for name, variant in (
        ("embedding", "256 px, rectified embedding"),
        ("dilations", "128 px, dilations by map"),
    ):
        row = logical.get(variant)
        found[name] = missing if row is None else f"measured at {variant[:6]}: {_gains(row)} (`logical_study.py`)"
    thinned = load("bank_thinning", folder)["rows"]
    found["thinning"] = missing
    if thinned:
        costs = [
            f"{metric} {kind} {thinned[0][f'{metric} {kind}, thinned']}"
            for metric in ("AUROC", "sPRO")
            for kind in ("logical", "structural")
        ]
        found["thinning"] = f"measured at a ratio of 1 %: {', '.join(costs)} (`bank.py thinning`)"
    return found


def _gains(row: dict[str, Any]) -> str:
    return f"image AUROC {row['AUROC mean, gain']}, sPRO {row['sPRO mean, gain']}"


def section(folder: Path) -> str:
    """The table as Markdown.

    Args:
        folder: Folder of the results files.
    """
    measured = sentences(folder)
    lines = []
    for row in rows():
        choice = row.get("choice", "")
        for name, sentence in measured.items():
            choice = choice.replace(f"{{{name}}}", sentence)
        lines.append([row["row"], row["section"], _places(row["code"]), _places(row["tests"]), choice])
    head = ["what", "section", "code", "tests", "choice, reason, measurement"]
    # Not `tables.table`, which would pad all rows to the longest choice.
    return "\n".join([f"{NOTE}\n", *(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))])


def _places(places: list[str]) -> str:
    """Names with their files, each file once: ``file`` name, name."""
    files: dict[str, list[str]] = {}
    for place in places:
        file, _, name = place.partition("::")
        files.setdefault(file.removeprefix("anomalib_npgmf/"), []).append(f"`{name}`")
    return "; ".join(f"{file} {', '.join(names)}" for file, names in files.items())

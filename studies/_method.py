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
# by placeholder, the variant of `logical_study.py`
LOGICAL = {"embedding": "256 px, rectified embedding", "dilations": "128 px, dilations by map"}


def rows() -> list[dict[str, Any]]:
    """The rows: ``row``, ``section``, ``code`` and ``tests`` as ``file::name``, and ``choice`` where there is one."""
    found: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("method.yaml").read_text(encoding="utf-8"))
    return found


def sentences(folder: Path) -> dict[str, str]:
    """Sentences with measured results, by the placeholder that ``choice`` of a row has for them.

    Args:
        folder: Folder of the results files.
    """
    found = dict.fromkeys((*LOGICAL, "thinning"), "not measured")
    logical = {row["variant"]: row for row in load("logical_study", folder)["rows"]}
    for name, variant in LOGICAL.items():
        if row := logical.get(variant):
            gains = f"image AUROC {row['AUROC mean, gain']}, sPRO {row['sPRO mean, gain']}"
            found[name] = f"measured at {variant[:6]}: {gains} (`logical_study.py`)"
    for row in load("bank_thinning", folder)["rows"][:1]:
        costs = ", ".join(f"{key.removesuffix(', thinned')} {row[key]}" for key in row if key.endswith(", thinned"))
        found["thinning"] = f"measured at a ratio of 1 %: {costs} (`bank.py thinning`)"
    return found


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

"""``python -m anomalib_npgmf.metrics``: score a folder of anomaly maps on MVTec LOCO AD from the shell."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table

from anomalib_npgmf.disk import write_bytes
from anomalib_npgmf.metrics.curve import SproCurve
from anomalib_npgmf.metrics.evaluate import LIMITS, evaluate_with_curves

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line, without the program; ``sys.argv`` if None.

    Returns:
        Exit status: 0, or 1 with one sentence on standard error if the input is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m anomalib_npgmf.metrics", description=__doc__)
    parser.add_argument("--dataset-root", type=Path, required=True, help="folder of the categories of MVTec LOCO AD")
    parser.add_argument("--category", required=True, help="such as pushpins")
    parser.add_argument(
        "--anomaly-maps", type=Path, required=True, help="folder with <category>/test/<kind>/NNN.tiff, any tool's"
    )
    parser.add_argument("--limits", type=float, nargs="+", default=LIMITS, help="false positive rate limits")
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    parser.add_argument("--curve", type=Path, help="write points of the curves to this CSV file")
    options = parser.parse_args(arguments)
    errors = Console(stderr=True)

    def progress(items: Iterable[T], text: str, total: int, /) -> Iterable[T]:
        return track(items, text, total, console=errors)

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results, curves = evaluate_with_curves(
                options.dataset_root, options.category, options.anomaly_maps, options.limits, progress
            )
        if options.output:
            write_bytes(options.output, f"{json.dumps(results, indent=2)}\n".encode())
        if options.curve:
            write_curves(curves, options.curve)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    Console().print(make_table(results, options.category))
    return 0


def make_table(results: dict[str, Any], title: str) -> Table:
    """Lay the results out as a table in percent.

    Args:
        results: From ``evaluate_loco``.
        title: Title of the table.

    Returns:
        One row per kind and per defect type: image AUROC, then AU-sPRO per limit.
    """
    auroc, spro = results["classification"], results["localization"]
    limits = next(iter(spro["auc_spro"].values()))
    table = Table("", "image AUROC", *(f"AU-sPRO {limit}" for limit in limits), title=title)
    for part, suffix in (("", ""), ("per defect type", "_per_defect")):
        if part:
            table.add_section()
        for name, values in spro[f"auc_spro{suffix}"].items():
            numbers = [auroc[f"auc_roc{suffix}"][name], *values.values()]
            table.add_row(name, *(f"{100 * number:.2f}" for number in numbers))
    return table


def write_curves(curves: dict[str, SproCurve], path: Path) -> None:
    """Write points of each curve as CSV.

    Args:
        curves: Curve per kind and defect type.
        path: File with the columns ``subset``, ``fpr`` and ``mean_spro``.
    """
    file = StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["subset", "fpr", "mean_spro"])
    for name, curve in curves.items():
        writer.writerows((name, fpr, spro) for fpr, spro in zip(*curve.points(), strict=True))
    write_bytes(path, file.getvalue().encode())


if __name__ == "__main__":
    sys.exit(main())

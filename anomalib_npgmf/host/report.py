"""The output of `anomalib predict` and `anomalib test`: a table, ``scores.csv``, ``scores.json``, ``report.html``."""

import csv
import heapq
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anomalib_npgmf.disk import write_bytes
from anomalib_npgmf.distributed import gather_list
from anomalib_npgmf.host.folder_check import CheckPictures
from anomalib_npgmf.host.page import Thumbnails, thumbnails_of, write_page
from anomalib_npgmf.host.summary import next_step
from anomalib_npgmf.host.verdict import Verdict, printable, scores_of_calibration, verdicts_of
from anomalib_npgmf.torch_model import PARTS

PRINTED_ROWS = 15
WIDTH = 1000  # characters per line where the output is no terminal; no table is wider
NAMED = 5  # false alarms, and misses, that are named
KEPT_THUMBNAILS = 400


class Report(Callback):
    """Writes the results into ``test/`` or ``predict/`` of the run's folder, and prints a summary of them.

    `anomalib_npgmf.Npgmf` adds it where it has a visualizer. It comes after that and removes the maps of the branches
    from the batch. Memory is bounded: besides a few hundred bytes per image it keeps the thumbnails of 400 images,
    false alarms and misses first, then the highest scores.

    Attributes:
        verdicts: Results so far, one per image.
    """

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self._thumbnails: list[tuple[tuple[bool, float], int, str, Thumbnails]] = []  # a heap
        self._numbers = count()
        self._written = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset, and list the images that cannot be read."""
        del pl_module
        checks = (c for c in trainer.callbacks if isinstance(c, CheckPictures))  # type: ignore[attr-defined]
        torn = [file for check in checks for file in check.unreadable] if trainer.is_global_zero else []
        self.verdicts, self._thumbnails, self._written = [Verdict(f.path, error=f.error) for f in torn], [], False

    on_predict_start = on_test_start

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a training that no test follows, print the path of the checkpoint."""
        del pl_module
        saved = getattr(trainer.checkpoint_callback, "best_model_path", "")
        images = getattr(getattr(trainer, "datamodule", None), "test_data", None)
        if saved and trainer.is_global_zero and images is not None and len(images) == 0:
            print(next_step(saved))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Collect the results of a batch."""
        del batch, batch_idx
        module: Any = pl_module
        found = verdicts_of(module, outputs)
        for verdict, thumbnails in zip(found, thumbnails_of(module, outputs, found), strict=True):
            drawn = getattr(module.visualizer, "file_of", None)
            picture = str(drawn(trainer, verdict.path)) if drawn is not None and verdict.path else ""
            kept = (verdict.is_wrong, verdict.score), next(self._numbers), verdict.path, thumbnails.linked_to(picture)
            push = heapq.heappush if len(self._thumbnails) < KEPT_THUMBNAILS else heapq.heappushpop
            push(self._thumbnails, kept)
        self.verdicts += found
        vars(outputs).pop("branch_maps", None)  # a list of predictions would keep them all in memory

    on_predict_batch_end = on_test_batch_end  # type: ignore[assignment]  # Lightning's differ in a default

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print."""
        verdicts = {verdict.path or str(i): verdict for i, verdict in enumerate(gather_list(self.verdicts))}
        thumbnails = {path: kept for _, _, path, kept in gather_list(self._thumbnails)}
        if trainer.is_global_zero:
            self._finish(trainer, pl_module, list(verdicts.values()), thumbnails)
        self._written = True

    on_predict_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was found before the error."""
        del exception
        if not self._written and self.verdicts and trainer.is_global_zero:
            self._written = True
            self._finish(trainer, pl_module, self.verdicts, {path: kept for _, _, path, kept in self._thumbnails})

    def _finish(
        self, trainer: Trainer, module: Any, verdicts: list[Verdict], thumbnails: dict[str, Thumbnails]
    ) -> None:
        if not verdicts:
            return
        verdicts.sort(key=worst_first)
        stage = "test" if trainer.testing else "predict"
        folder = Path(trainer.default_root_dir) / stage
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(verdicts, folder / "scores.csv")
        write_json(verdicts, folder / "scores.json")
        statement = getattr(module.post_processor, "statement", str)()  # on the false alarms that the threshold allows
        summary, checkpoint = summary_of(verdicts), str(trainer.ckpt_path or "")
        write_page(
            verdicts,
            thumbnails,
            folder / "report.html",
            summary=summary,
            statement=statement,
            checkpoint=checkpoint,
            calibration=scores_of_calibration(module.post_processor),
        )
        scored = [verdict for verdict in verdicts if not verdict.error]  # the others are in the warning at the start
        if not trainer.testing:
            print_table(table_of(scored[:PRINTED_ROWS]))
            if len(scored) > PRINTED_ROWS:
                print(f"{len(scored) - PRINTED_ROWS} more, with lower scores, in scores.csv.")
        print(summary)
        if statement:
            print(statement)
        for outcome in ("false alarm", "miss"):
            if any(verdict.outcome == outcome for verdict in verdicts):
                print(names_of(verdicts, outcome))
        saved = getattr(trainer.checkpoint_callback, "best_model_path", "")
        print(f"Report: {(folder / 'report.html').resolve()} (scores.csv and scores.json beside it)")
        if trainer.testing and (saved or checkpoint):
            print(next_step(checkpoint or saved) if saved else f"Checkpoint: {checkpoint}")


def print_table(table: Table) -> None:
    """Print a table, in its full width where this does not go to a terminal, which would have to wrap it."""
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)


def worst_first(verdict: Verdict) -> tuple[bool, float]:
    """Sort key: unreadable images, then descending scores."""
    return not verdict.error, -verdict.score if math.isfinite(verdict.score) else 0.0


def table_of(verdicts: Sequence[Verdict]) -> Table:
    """Table of pictures for the terminal, one row each."""
    folder = common_folder([verdict.path for verdict in verdicts])
    table = Table("file", "score", "verdict", "decided by", "reason", show_edge=False)
    for verdict in verdicts:
        name = printable(os.path.relpath(verdict.path, folder)) if verdict.path else ""
        score = "" if verdict.error else f"{verdict.score:.3f}"
        # Text, because a file's name may look like markup
        table.add_row(*map(Text, (name, score, verdict.label, verdict.part, verdict.error or verdict.reason)))
    return table


def names_of(verdicts: Sequence[Verdict], outcome: str) -> str:
    """One line that names the pictures of an outcome, with their scores; the worst mistakes first.

    Example:
        >>> pictures = [Verdict("bad/a.png", 0.4, False, truth=True), Verdict("bad/b.png", 0.2, False, truth=True)]
        >>> names_of(pictures, "miss")
        'miss: bad/b.png 0.200, bad/a.png 0.400'
    """
    found = [verdict for verdict in verdicts if verdict.outcome == outcome]
    found.sort(key=lambda verdict: verdict.score if outcome == "miss" else -verdict.score)
    named = [printable(f"{Path(v.path).parent.name}/{Path(v.path).name} {v.score:.3f}") for v in found[:NAMED]]
    return f"{outcome}: {', '.join(named)}" + (f", and {len(found) - NAMED} more" if len(found) > NAMED else "")


def summary_of(verdicts: Sequence[Verdict]) -> str:
    """One line: how many pictures, how many of them anomalous, and mistakes where the truth is known.

    Example:
        >>> pictures = [Verdict("a.png", 0.7, True, 0.5, truth=True), Verdict("b.png", 0.6, True, 0.5, truth=False)]
        >>> summary_of(pictures)
        '2 pictures: 2 anomalous, 0 normal; threshold 0.5. False alarms: 1 of 1 good. Misses: 0 of 1 bad.'
    """
    labels = [verdict.label for verdict in verdicts]
    told = [f"{labels.count(label)} {label}" for label in ("anomalous", "normal")] if any(labels) else []
    told += [f"{labels.count('unreadable')} unreadable"] if "unreadable" in labels else []
    line = f"{len(verdicts)} picture{'' if len(verdicts) == 1 else 's'}"
    line += f": {', '.join(told)}" if told else ""
    threshold = next((verdict.threshold for verdict in verdicts if verdict.threshold is not None), None)
    line += "." if threshold is None else f"; threshold {threshold:.3g}."
    outcomes = [verdict.outcome for verdict in verdicts]
    if any(outcomes):
        truths = [verdict.truth for verdict in verdicts]
        line += f" False alarms: {outcomes.count('false alarm')} of {truths.count(False)} good."
        line += f" Misses: {outcomes.count('miss')} of {truths.count(True)} bad." if True in truths else ""
    return line


def common_folder(paths: Sequence[str]) -> str:
    """The deepest folder that holds all files; "." where they have none in common."""
    try:
        return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths if path])  # noqa: PTH100, PTH120
    except ValueError:
        return "."


def record_of(verdict: Verdict) -> dict[str, Any]:
    """A verdict in plain data, as ``scores.json`` has it.

    Example:
        >>> record_of(Verdict("a.png", 0.7, True, 0.5, {"logical": 0.7}, "logical"))["label"]
        'anomalous'
    """
    known = math.isfinite(verdict.score)
    return {
        "path": verdict.path,
        "score": verdict.score if known else None,
        "label": verdict.label or None,
        "threshold": verdict.threshold,
        "parts": verdict.parts,
        "decided_by": verdict.part or None,
        "reason": verdict.error or verdict.reason,
        "regions": [asdict(region) for region in verdict.regions],
        "ground_truth": None if verdict.truth is None else ("anomalous" if verdict.truth else "normal"),
        "outcome": verdict.outcome or None,
    }


def write_json(verdicts: Sequence[Verdict], path: Path) -> None:
    """Write a list with one object per picture."""
    text = json.dumps([record_of(v) for v in verdicts], indent=1, ensure_ascii=False)
    write_bytes(path, text.encode(errors="backslashreplace"))  # names of files may be no UTF-8; JSON reads them back


def write_csv(verdicts: Sequence[Verdict], path: Path) -> None:
    """Write one row per picture, a column for each part, and the regions as JSON."""
    parts = [part for part in PARTS if any(part in verdict.parts for verdict in verdicts)]
    file = StringIO(newline="")
    writer = csv.writer(file)
    before, after = ("path", "score", "label", "threshold"), ("decided_by", "reason", "ground_truth", "outcome")
    writer.writerow([*before, *(f"score_{part}" for part in parts), *after, "regions"])
    for record in map(record_of, verdicts):
        scores = [record["parts"].get(part) for part in parts]
        rest = [record[name] for name in after]
        writer.writerow([*(record[name] for name in before), *scores, *rest, json.dumps(record["regions"])])
    write_bytes(path, file.getvalue().encode(errors="backslashreplace"))

"""Table at the end of a test: how many images were found anomalous, and by which branch."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from anomalib_npgmf.distributed import gather_list
from anomalib_npgmf.host.quiet import on_command_line
from anomalib_npgmf.host.visualizer import dominant_part, maps_of
from anomalib_npgmf.torch_model import PARTS


class TestSummary(Callback):
    """Prints how many images of each test folder were called anomalous, and which branch determined their scores.

    `anomalib_npgmf.Npgmf` adds it. It has to come after the post-processor, which gives the labels, and before the
    report, which removes the maps of the branches from the batch. In a distributed run each process counts its share,
    and the first one prints its own.
    """

    __test__ = False  # for pytest, this is no class of tests

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()  # by folder
        self.found: Counter[tuple[str, str]] = Counter()  # called anomalous, by folder and branch
        self._labels: set[bool] = set()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count."""
        del trainer, pl_module
        self.images, self.found, self._labels = Counter(), Counter(), set()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Count the images of a batch."""
        del trainer, batch, batch_idx
        if outputs.gt_label is not None:
            self._labels |= set(outputs.gt_label.bool().tolist())
        carried, module = maps_of(outputs), pl_module
        if carried is None or outputs.pred_label is None or outputs.image_path is None:
            return
        parts = dominant_part(module.model.merger, carried.maps)  # type: ignore[union-attr,arg-type]
        for path, label, part in zip(outputs.image_path, outputs.pred_label.tolist(), parts, strict=True):
            folder = Path(path).parent.name
            self.images[folder] += 1
            self.found[folder, part] += bool(label)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        del pl_module
        if trainer.is_global_zero and self.images:
            Console().print(self.table())
        both = set(gather_list(list(self._labels))) == {True, False}  # metrics need good and bad images
        if both and trainer.is_global_zero and on_command_line():  # in place of Lightning's table, see `settle`
            print(", ".join(f"{name} {float(value):.3f}" for name, value in trainer.callback_metrics.items()))

    def table(self) -> Table:
        """One row per folder, good images first; one column per branch that determined a score."""
        parts = [part for part in PARTS if any(decided == part for _, decided in self.found)]
        table = Table("test folder", "images", "anomalous", *(f"by {part}" for part in parts), show_edge=False)
        for folder in sorted(self.images, key=lambda name: (name != "good", name)):
            counts = [self.found[folder, part] for part in parts]
            table.add_row(folder, *map(str, (self.images[folder], sum(counts), *counts)))
        return table


def next_step(checkpoint: str) -> str:
    """Two lines after a training: where its checkpoint is and how to use it.

    Example:
        >>> print(next_step("a b/model.ckpt"))
        Checkpoint: a b/model.ckpt
        Next: anomalib predict --model Npgmf --data FOLDER --ckpt_path 'a b/model.ckpt'
    """
    command = f"anomalib predict --model Npgmf --data FOLDER --ckpt_path {shlex.quote(checkpoint)}"
    return f"Checkpoint: {checkpoint}\nNext: {command}"

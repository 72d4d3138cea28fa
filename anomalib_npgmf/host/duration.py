"""Prints how long the rest of a training takes, once that can be measured."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

MANY = 10  # with more batches per epoch two of them are measured, else a whole epoch
WORTH_SAYING = 30.0  # seconds; shorter remainders are not printed


class Duration(Callback):
    """Prints an estimate of how long the rest of a training takes.

    With more than ten batches per epoch, the second and third batch are measured. Otherwise the whole second epoch is,
    because its loaders, calibration and checkpoint take longer than its batches. The first batch or epoch is left out:
    it includes work that is done once.
    """

    def __init__(self) -> None:
        self._batches = 0  # of this fit
        self._epochs = 0
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counters."""
        del trainer, pl_module
        self._batches = self._epochs = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the second epoch, if epochs have few batches."""
        del pl_module
        now = time.monotonic()
        if self._epochs == 1:
            self._since = now
        elif self._epochs == 2 and trainer.num_training_batches <= MANY:
            self._say(trainer, (now - self._since) * _epochs_left(trainer))
        self._epochs += 1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **options: Any) -> None:
        """Measure the second and third batch, if epochs have many."""
        del pl_module, args, options
        self._batches += 1
        if trainer.num_training_batches <= MANY:
            return
        if self._batches == 1:
            self._since = time.monotonic()
        elif self._batches == 3:
            left = _epochs_left(trainer) * trainer.num_training_batches - 3
            self._say(trainer, (time.monotonic() - self._since) / 2 * left)

    def _say(self, trainer: Trainer, seconds: float) -> None:
        if trainer.is_global_zero and seconds >= WORTH_SAYING:
            epochs, batches = _epochs_left(trainer), trainer.num_training_batches
            print(f"The training takes about {in_words(seconds)} more ({epochs} epochs of {batches} batches).")


def _epochs_left(trainer: Trainer) -> int:
    """Epochs left, including the present one; 0 where steps or time limit the fit."""
    timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if trainer.max_epochs is None or trainer.max_epochs < 0 or trainer.max_steps != -1 or timed:
        return 0
    return trainer.max_epochs - trainer.current_epoch


def in_words(seconds: float) -> str:
    """A time span in seconds, minutes or hours, for printing.

    Example:
        >>> in_words(42), in_words(130), in_words(9000)
        ('42 s', '2.2 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"

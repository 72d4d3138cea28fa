"""The number of epochs that a model trains where the user sets no limit."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer


def set_default_epochs(trainer: Trainer, epochs: int) -> None:
    """Limit a fit to a number of epochs, unless the user limits it by epochs, steps or time.

    anomalib offers a model no place for such a default: its engine lets `trainer_arguments` override what the user
    gave. Lightning replaces a missing number with 1000 before it calls any hook of the model, and that 1000 cannot be
    told from a user's. So this has to be called before, when the trainer is attached to the model.

    Args:
        trainer: The trainer, before its fit starts.
        epochs: The model's number of epochs; a larger ``min_epochs`` of the user's takes its place.

    Example:
        >>> without, given = Trainer(logger=False), Trainer(logger=False, max_epochs=7)
        >>> for trainer in (without, given):
        ...     set_default_epochs(trainer, 50)
        >>> without.max_epochs, given.max_epochs
        (50, 7)
    """
    loop = trainer.fit_loop
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning's connector sets it
    timed = any(isinstance(callback, Timer) for callback in callbacks)  # the trainer's max_time is one
    if loop.max_epochs is None and loop.max_steps == -1 and not timed:
        loop.max_epochs = max(epochs, loop.min_epochs or 0)

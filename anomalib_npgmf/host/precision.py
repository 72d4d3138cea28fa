"""Check of the trainer's precision."""

from lightning.pytorch import Trainer

SUPPORTED = ("32-true", "bf16-mixed", "16-mixed")


def check_precision(trainer: Trainer) -> None:
    """Refuse precisions that convert the whole model.

    With half precision weights the memory bank, the calibration and the distances would be in half precision as well,
    and Adam's steps would often be smaller than what such a weight resolves.

    Args:
        trainer: The trainer, before it converts the model.

    Raises:
        ValueError: If all of the model would run in another precision than float32.

    Example:
        >>> check_precision(Trainer(precision="64-true", logger=False))
        Traceback (most recent call last):
        ...
        ValueError: Npgmf cannot run with precision='64-true'; set precision to '32-true', or to 'bf16-mixed' or ...
    """
    if trainer.precision not in SUPPORTED:
        msg = (
            f"Npgmf cannot run with precision={trainer.precision!r}; set precision to '32-true', or to 'bf16-mixed' or "
            "'16-mixed', in which its networks run in half precision and the rest in float32."
        )
        raise ValueError(msg)

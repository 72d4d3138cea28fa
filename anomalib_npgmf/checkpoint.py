"""Checkpoints that say what they are, and one sentence where one does not fit."""

from pathlib import Path
from typing import Any

from anomalib.models.components import AnomalibModule

from anomalib_npgmf.export.metadata import KEY


def check_checkpoint(checkpoint: dict[str, Any], model: AnomalibModule, preset: str) -> None:
    """Raise unless a checkpoint holds the model that is to take it.

    Args:
        checkpoint: As Lightning hands it to ``on_load_checkpoint``.
        model: The model.
        preset: The model's preset.

    Raises:
        ValueError: If the checkpoint is of another model, another preset or another architecture.
    """
    if KEY not in checkpoint:
        msg = "This checkpoint was not written by Npgmf; give one that was."
        raise ValueError(msg)
    stored = checkpoint[KEY]["preset"]
    if stored != preset:
        msg = f"The checkpoint is of preset {stored!r}, the model of preset {preset!r}; set preset to {stored!r}."
        raise ValueError(msg)
    state = checkpoint["state_dict"]
    # The bank's size is known only after training.
    expected = {name: value.shape for name, value in model.state_dict().items() if ".bank." not in name}
    wrong = [name for name, shape in expected.items() if name not in state or state[name].shape != shape]
    if wrong:
        msg = (
            f"The checkpoint's architecture is not the model's ({len(wrong)} tensors are missing or of another shape, "
            f"first {wrong[0]}); construct the model with the arguments of its training, or use load_from_checkpoint."
        )
        raise ValueError(msg)


def unreadable(path: str | Path, error: Exception) -> ValueError:
    """The error for a file that cannot be read as a checkpoint.

    Example:
        >>> print(unreadable("a.ckpt", EOFError()))
        a.ckpt cannot be read as a checkpoint (EOFError); it is truncated or foreign: copy it again or give another one.
    """
    return ValueError(
        f"{path} cannot be read as a checkpoint ({type(error).__name__}); it is truncated or foreign: copy it again or "
        "give another one."
    )

"""Checkpoints that say what they are, and one sentence where one does not fit."""

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor

from anomalib_npgmf.backbone.resize import exportable
from anomalib_npgmf.export.metadata import KEY


def check_checkpoint(checkpoint: dict[str, Any], model: "NpgmfCheckpoint", preset: str) -> None:
    """Raise unless a checkpoint holds the model that is to take it.

    Args:
        checkpoint: As Lightning hands it to ``on_load_checkpoint``.
        model: The model.
        preset: The model's preset.

    Raises:
        ValueError: If the checkpoint is of another model, another preset, another merging or another architecture.
    """
    if KEY not in checkpoint:
        msg = "This checkpoint was not written by Npgmf; give one that was."
        raise ValueError(msg)
    stored = checkpoint[KEY]["preset"]
    if stored != preset:
        msg = f"The checkpoint is of preset {stored!r}, the model of preset {preset!r}; set preset to {stored!r}."
        raise ValueError(msg)
    merging, weights = checkpoint[KEY].get("merging"), checkpoint[KEY].get("weights")
    own = model.describe()
    if (merging, weights) != (own["merging"], own["weights"]):
        msg = (
            f"The checkpoint was calibrated for merging {merging!r} with the weights {weights}; set merging, "
            "logical_weight and structural_weight to these."
        )
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


# anomalib takes every direct subclass of its module for a model, so only Npgmf itself may be one.
if TYPE_CHECKING:
    _Base = AnomalibModule
else:
    _Base = object


class NpgmfCheckpoint(_Base):
    """Saving and loading.

    Attributes:
        preset: Preset that the model's settings started from.
        category: What the images show, "" if unknown.
        prompt: Caption of the text prior.
    """

    preset: str
    category: str
    prompt: str | None
    _weights_ready: bool

    def describe(self) -> dict[str, Any]:
        """What the model is; the export does it."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Have the checkpoint say what it is; see `anomalib_npgmf.export.describe`."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY] = self.describe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this model.

        Raises:
            ValueError: If it is not.
        """
        check_checkpoint(checkpoint, self, self.preset)
        super().on_load_checkpoint(checkpoint)
        self._keep_antialiasing()
        self.category, self.prompt = checkpoint[KEY]["category"], checkpoint[KEY]["prompt"]
        self._weights_ready = True

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> "NpgmfCheckpoint":  # type: ignore[override]
        """As `anomalib.models.AnomalibModule.load_from_checkpoint`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, foreign or of another architecture.
        """
        try:
            model = super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except (ValueError, FileNotFoundError):
            raise
        except (RuntimeError, EOFError, KeyError, TypeError, AttributeError, UnpicklingError) as error:
            raise unreadable(checkpoint_path, error) from error
        assert isinstance(model, cls)
        return model

    def _keep_antialiasing(self) -> None:
        """Resize in `forward` and in exported files as in training; anomalib leaves the antialiasing out there."""
        if isinstance(self.pre_processor, PreProcessor):
            self.pre_processor.export_transform = exportable(self.pre_processor.transform)

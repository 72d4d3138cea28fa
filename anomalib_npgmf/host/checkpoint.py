"""Checks of checkpoints; what does not fit raises an error of one sentence."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.models.components import AnomalibModule
from torch import Tensor

from anomalib_npgmf.host.archive import check_archive

if TYPE_CHECKING:
    from anomalib_npgmf.lightning_model import Npgmf


def check_checkpoint(state: Mapping[str, Tensor], metadata: dict[str, Any] | None, model: "Npgmf") -> None:
    """Raise unless a checkpoint fits the model that is to be restored from it.

    Args:
        state: The checkpoint's ``state_dict``.
        metadata: The checkpoint's metadata, see `anomalib_npgmf.export.describe`.
        model: The model to restore.

    Raises:
        ValueError: If the checkpoint is of another model, another preset, another merging or another architecture.
    """
    if not isinstance(metadata, dict) or not {"preset", "category", "prompt"} <= metadata.keys():
        msg = "This checkpoint was not written by Npgmf; give one that was."
        raise ValueError(msg)
    stored = metadata["preset"]
    if stored != model.preset:
        msg = f"The checkpoint is of preset {stored!r}, the model of preset {model.preset!r}; set preset to {stored!r}."
        raise ValueError(msg)
    merging, weights = metadata.get("merging"), metadata.get("weights")
    own = model.describe()
    if (merging, weights) != (own["merging"], own["weights"]):
        msg = (
            f"The checkpoint was calibrated for merging {merging!r} with the weights {weights}; set merging, "
            "logical_weight and structural_weight to these."
        )
        raise ValueError(msg)
    # Checkpoints of version 0.1 hold no configuration, but these fields of it.
    for name in ("branches", "logical_image_size", "structural_image_size"):
        if metadata.get(name, own[name]) != own[name]:
            msg = f"The checkpoint was made with {name} {metadata[name]!r} (not {own[name]!r}); set {name} to that."
            raise ValueError(msg)
    # Buffers whose size is known only after training, or that older checkpoints lack.
    grown = (".bank.", ".normal_scores", ".examples.")
    expected = {name: v.shape for name, v in model.state_dict().items() if not any(part in name for part in grown)}
    wrong = [name for name, shape in expected.items() if name not in state or state[name].shape != shape]
    if wrong:
        msg = (
            f"The checkpoint's architecture is not the model's ({len(wrong)} tensors are missing or of another shape, "
            f"first {wrong[0]}); construct the model with the arguments of its training, or use load_from_checkpoint."
        )
        raise ValueError(msg)


@contextmanager
def readable(path: str | Path, model: type[AnomalibModule], arguments: Iterable[str] = ()) -> Iterator[None]:
    """Check a checkpoint's file, and turn errors of the block, which loads it, into one sentence.

    Args:
        path: The file.
        model: Class of the model.
        arguments: Names of the arguments that the user gives besides the path. Lightning ignores unknown ones.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the model has no such argument.
        ValueError: If the file is truncated, damaged, foreign or of another architecture.

    Example:
        >>> with readable("a.ckpt", AnomalibModule):
        ...     raise EOFError
        Traceback (most recent call last):
        ...
        ValueError: a.ckpt cannot be read as a checkpoint (EOFError); it is truncated or foreign: copy it again or ...
    """
    functions = (model.__init__, AnomalibModule.load_from_checkpoint)
    known = {name for function in functions for name in signature(function).parameters}
    if unknown := sorted(set(arguments) - known):
        msg = f"{model.__name__} has no argument {', '.join(unknown)}; help({model.__name__}) lists those that it has."
        raise TypeError(msg)
    checked = False
    try:
        if isinstance(path, (str, Path)) and Path(path).is_file():
            check_archive(Path(path))
        checked = True
        yield
    except (FileNotFoundError, ModuleNotFoundError):
        raise
    except Exception as error:  # whatever a reader makes of arbitrary bytes
        if checked and (arguments or type(error) is ValueError):
            raise  # it concerns the arguments, or is one sentence already
        msg = (
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); it is truncated or foreign: copy it "
            "again or give another one."
        )
        raise ValueError(msg) from error

"""Checks of checkpoints: one sentence where one does not fit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from anomalib_npgmf.lightning_model import Npgmf


# A checkpoint has weights of its own, and may be trained on in another way.
_FREE = frozenset({"backbone_weights", "structural_backbone_weights", "learning_rate", "epochs"})
_OF_BEFORE = ("branches", "logical_image_size", "structural_image_size")  # what the metadata of 0.1 say


def difference(own: Mapping[str, Any], stored: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """First field in which two configurations differ, of those that a trained model depends on.

    Args:
        own: A configuration as ``dataclasses.asdict`` gives it.
        stored: That of a checkpoint. What another version knows and this one does not, or the reverse, is not compared.

    Returns:
        Name of the field, with dots where it is nested, its own and its stored value; ``None`` if there is none.

    Example:
        >>> difference({"merging": "sum", "logical": {"window": 8}}, {"merging": "sum", "logical": {"window": 4}})
        ('logical.window', 8, 4)
        >>> difference({"epochs": 50, "image_size": (128, 128)}, {"epochs": 12, "image_size": [128, 128]})
    """
    for name, value in own.items():
        if name in _FREE or name not in stored:
            continue
        other = stored[name]
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            if found := difference(value, other):
                return (f"{name}.{found[0]}", *found[1:])
        elif _plain(value) != _plain(other):
            return name, value, other
    return None


def _plain(value: Any) -> Any:
    """Tuples as lists, which files make of them."""
    return list(map(_plain, value)) if isinstance(value, tuple | list) else value


def check_checkpoint(state: Mapping[str, Tensor], metadata: dict[str, Any] | None, model: "Npgmf") -> None:
    """Raise unless a checkpoint fits the model that is to be restored from it.

    Args:
        state: Its tensors.
        metadata: What it says about itself, see `anomalib_npgmf.export.describe`.
        model: The model.

    Raises:
        ValueError: If the checkpoint is of another model, another preset or another configuration, naming the field.
    """
    if metadata is None:
        msg = "This checkpoint was not written by Npgmf; give one that was."
        raise ValueError(msg)
    stored = metadata["preset"]
    if stored != model.preset:
        msg = f"The checkpoint is of preset {stored!r}, the model of preset {model.preset!r}; set preset to {stored!r}."
        raise ValueError(msg)
    own = model.describe()
    merging, weights = metadata.get("merging"), metadata.get("weights")
    if (merging, weights) != (own["merging"], own["weights"]):
        msg = (
            f"The checkpoint was calibrated for merging {merging!r} with the weights {weights}; set merging, "
            "logical_weight and structural_weight to these."
        )
        raise ValueError(msg)
    if "configuration" in metadata:
        found = difference(asdict(model.settings), metadata["configuration"])
    else:
        found = difference({name: own[name] for name in _OF_BEFORE}, metadata)
    if found:
        name, ours, theirs = found
        msg = (
            f"The checkpoint was trained with {name} {_plain(theirs)!r}, the model has {_plain(ours)!r}; construct the "
            "model with the arguments of its training, or use load_from_checkpoint."
        )
        raise ValueError(msg)
    # The bank's size is known only after training.
    expected = {name: value.shape for name, value in model.state_dict().items() if ".bank." not in name}
    wrong = [name for name, shape in expected.items() if name not in state or state[name].shape != shape]
    if wrong:
        msg = (
            f"The checkpoint's architecture is not the model's ({len(wrong)} tensors are missing or of another shape, "
            f"first {wrong[0]}); construct the model with the arguments of its training, or use load_from_checkpoint."
        )
        raise ValueError(msg)


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong in reading a file that is no checkpoint into one sentence.

    Args:
        path: The file.

    Raises:
        ValueError: If it is truncated, foreign or of another architecture.

    Example:
        >>> with readable("a.ckpt"):
        ...     raise EOFError
        Traceback (most recent call last):
        ...
        ValueError: a.ckpt cannot be read as a checkpoint (EOFError); it is truncated or foreign: copy it again or ...
    """
    try:
        yield
    except (RuntimeError, EOFError, KeyError, TypeError, AttributeError, UnpicklingError) as error:
        msg = (
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); it is truncated or foreign: copy it "
            "again or give another one."
        )
        raise ValueError(msg) from error

"""State that a resumed training needs besides the model: random states, and which codes are to be replaced."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class ResumeState(Callback):
    """Keeps in the checkpoint what makes a resumed training go on as if it had not stopped.

    The random state decides the order of shuffled images. In the first forward pass of an epoch the logical branch
    replaces codes that the epoch before did not use. Lightning's checkpoint holds neither state. The random states are
    those of the first process; augmentations in worker processes of the data loader follow from them.

    Example:
        >>> state = ResumeState()
        >>> state.load_state_dict({"random": random_states()})
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}
        self._model: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the loaded state before Lightning makes the first iterator of images, which draws their order."""
        del trainer
        self._model = pl_module.model
        loaded, self._loaded = self._loaded, {}
        if loaded.get("codebooks") is not None:
            self._model.logical.load_training_state(loaded["codebooks"])
        if loaded:
            set_random_states(loaded["random"])

    def state_dict(self) -> dict[str, Any]:
        """Random states, and the training state of the codebooks."""
        logical = getattr(self._model, "logical", None)
        return {"random": random_states(), "codebooks": logical.training_state() if logical is not None else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until `on_fit_start` sets it."""
        self._loaded = state_dict


def random_states() -> dict[str, Any]:
    """States of the generators of Python, numpy, torch and its GPUs, as `torch.load` reads them with ``weights_only``.

    Example:
        >>> before = random_states()
        >>> drawn = torch.rand(1), random.random(), np.random.rand()
        >>> set_random_states(before)
        >>> drawn == (torch.rand(1), random.random(), np.random.rand())
        True
    """
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  # augmentations may draw from the global generator
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Set what `random_states` returned; those of GPUs only where there are as many."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])

"""Atomic writing of checkpoints."""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from anomalib.engine.plugins.checkpoint_io import AnomalibCheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy

from anomalib_npgmf.disk import replace_bytes


class WholeCheckpointIO(AnomalibCheckpointIO):
    """Writes a checkpoint to a temporary file beside its place and renames it.

    Lightning writes it into the system's temporary folder and moves it. Where that is another file system, moving is
    copying, so that a process that is killed meanwhile leaves half a file in the place of a whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: State of model and trainer.
            path: The file; one on another machine (``s3://``) is left to Lightning.
            storage_options: Not supported, see Lightning.

        Raises:
            OSError: If it cannot be written; its text names the file.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(Path(path), content.getbuffer())


def write_whole_checkpoints(strategy: Strategy) -> None:
    """Have a strategy write with `WholeCheckpointIO`, unless the user chose another way.

    Args:
        strategy: The trainer's.
    """
    present = strategy.checkpoint_io
    if type(present) in (TorchCheckpointIO, AnomalibCheckpointIO):
        strategy.checkpoint_io = WholeCheckpointIO(getattr(present, "extra_safe_globals", ()))

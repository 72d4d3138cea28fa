"""The memory bank of an exported file: its shape, and a temporary reduction of the bank during an export."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anomalib.data import AnomalibDataModule

if TYPE_CHECKING:
    from anomalib_npgmf.lightning_model import Npgmf

logger = logging.getLogger(__name__)


@contextmanager
def bank_of_size(module: "Npgmf", size: int | None, datamodule: AnomalibDataModule | None) -> Iterator[None]:
    """Shrink the bank while a file is written, and calibrate for it if there are data; otherwise warn.

    Args:
        module: The trained model.
        size: Number of patches to keep; ``None`` keeps all.
        datamodule: Data to calibrate on; ``None`` keeps the calibration of the whole bank.

    Raises:
        ValueError: If the size is out of range, or there is no bank.
    """
    if size is None:
        yield
        return
    if module.model.structural is None:
        msg = "bank_size has no meaning for a model without structural branch; leave it out."
        raise ValueError(msg)
    bank = module.model.structural.bank
    parts = [part for part in (module.model.merger, module.post_processor) if part is not None]
    embeddings, norms = bank.embeddings, bank.norms
    states = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    bank.shrink(size)
    try:
        if datamodule is None:
            logger.warning(
                "The bank shrinks from %d to %d patches, but calibration and threshold stay the whole bank's "
                "and scores rise; pass a data module to calibrate anew.",
                len(embeddings),
                size,
            )
        else:
            module.calibrate(datamodule)
        module.calibrated_for_bank = datamodule is not None
        yield
    finally:
        module.calibrated_for_bank = True
        bank.embeddings, bank.norms = embeddings, norms
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)


def bank_shape(module: "Npgmf") -> tuple[int, int] | None:
    """Patches and dimensions of a model's memory bank; ``None`` without one."""
    if module.model.structural is None:
        return None
    rows, columns = module.model.structural.bank.embeddings.shape
    return rows, columns

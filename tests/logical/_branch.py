"""A small logical branch and features for it."""

from typing import Any

import torch

from anomalib_npgmf.logical.config import LogicalConfig
from anomalib_npgmf.logical.model import LogicalBranch

LEVELS, CHANNELS = (2, 3, 4), (8, 12, 16)
SIZE = (128, 64)
SLIM = {"code_dim": 8, "atrous_width": 8, "prior_dim": 8, "fusion_depth": 1, "decoder_blocks": 1, "vq_levels": (3, 4)}


def make_branch(text_prior: str = "learned", size: tuple[int, int] = SIZE, **changes: Any) -> LogicalBranch:
    torch.manual_seed(0)
    config = LogicalConfig(**(SLIM | changes))
    return LogicalBranch(LEVELS, CHANNELS, (True, False, True), size, text_prior, text_dim=6, config=config)


def make_features(size: tuple[int, int] = SIZE, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.rand(batch, c, size[0] >> k, size[1] >> k, generator=generator)
        for k, c in zip(LEVELS, CHANNELS, strict=True)
    ]

"""Edited code maps: the decoder learns to rebuild what is there from codes that say something else in places."""

from collections.abc import Mapping

import torch
from torch import Tensor

_LEAST, _MOST = 0.25, 0.5  # side of an edited rectangle, relative to the map's


def edit_codes(codes: Mapping[int, Tensor], share: float) -> dict[int, Tensor]:
    """Overwrite a rectangle of some images' code maps by another place's codes.

    At test time an image picks its own codes, so that a part in the wrong place hands the decoder the codes it needs to
    rebuild it. Trained on edited codes, the decoder has a reason to doubt codes that the context contradicts. An
    addition to the paper. Uses torch's global random state.

    Args:
        codes: Quantised features by level, [B, d_q, H/2^k, W/2^k].
        share: Probability that an image is edited, in [0, 1].

    Returns:
        The codes, with the same rectangle edited on every level; it comes from a random place of a random image of the
        batch.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> edited = edit_codes({3: torch.arange(64.0).view(1, 1, 8, 8)}, share=1.0)[3]
        >>> changed = edited.flatten() != torch.arange(64.0)
        >>> 0 < int(changed.sum()) <= 16
        True
    """
    if not codes:
        return {}
    edited = {level: values.clone() for level, values in codes.items()}
    coarsest = codes[max(codes)]
    images, _, *cells = coarsest.shape
    for image in (torch.rand(images) < share).nonzero().flatten().tolist():
        source = int(torch.randint(images, (1,)))
        sides = [max(1, round(n * (_LEAST + (_MOST - _LEAST) * float(torch.rand(1))))) for n in cells]
        into, out_of = (
            [int(torch.randint(n - side + 1, (1,))) for n, side in zip(cells, sides, strict=True)] for _ in range(2)
        )
        for level, values in codes.items():
            scale = values.shape[-1] // cells[1]
            here, there = (
                [slice(scale * start, scale * (start + side)) for start, side in zip(corner, sides, strict=True)]
                for corner in (into, out_of)
            )
            edited[level][image, :, here[0], here[1]] = values[source, :, there[0], there[1]]
    return edited

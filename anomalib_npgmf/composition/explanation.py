"""Explanation of an abnormal composition: one line of text, and a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_npgmf.composition.histogram import Evidence


class Explanation(NamedTuple):
    """The code that contributes most to an image's composition distance.

    Attributes:
        level: Backbone level of the code.
        codebook_size: How many codes its codebook has.
        codebook: Number of its codebook among those of that level and size.
        code: Its number in the codebook.
        share: Share of the patches of the place that are assigned to the code, in [0, 1].
        normal_share: Mean share on normal images.
        mask: Patches of the place that belong to the code, boolean [H, W].
        place: Cell of the grid, "image" for the whole image.

    Example:
        >>> explanation = Explanation(4, 16, 0, 7, 0.02, 0.05, torch.zeros(2, 2, dtype=torch.bool))
        >>> explanation.text
        'composition: less of code 7 than normal (level 4, 16 codes, 2.0 % of the image instead of 5.0 %)'
    """

    level: int
    codebook_size: int
    codebook: int
    code: int
    share: float
    normal_share: float
    mask: Tensor
    place: str = "image"

    @property
    def text(self) -> str:
        """One line for a caption."""
        sign = "more" if self.share > self.normal_share else "less"
        where, whole = ("", "the image") if self.place == "image" else (f" in the {self.place}", "it")
        return (
            f"composition: {sign} of code {self.code} than normal{where} "
            f"(level {self.level}, {self.codebook_size} codes, "
            f"{self.share:.1%} of {whole} instead of {self.normal_share:.1%})"
        ).replace("%", " %")


def explain(evidence: Sequence[Evidence], image: int, levels: Sequence[int], size: tuple[int, int]) -> Explanation:
    """Find the code and cell that contribute most to the distance of one image.

    Args:
        evidence: Contributions to the distance, one entry per pair of level and codebook size.
        image: Index of the image in the batch.
        levels: Backbone level of each entry.
        size: Height and width of the mask.
    """
    number = max(range(len(evidence)), key=lambda index: float(evidence[index].contributions[image].max()))
    found = evidence[number]
    contributions = found.contributions[image]
    book, code, row, column = place = tuple(map(int, torch.unravel_index(contributions.argmax(), contributions.shape)))
    _, codes, grid, _ = contributions.shape
    membership = found.memberships[image, book, code]
    mask = F.interpolate(membership[None, None], size=size, mode="bilinear", align_corners=False)[0, 0] > 0.5
    cell = torch.zeros(1, 1, grid, grid, device=mask.device)
    cell[0, 0, row, column] = 1
    return Explanation(
        level=levels[number],
        codebook_size=codes,
        codebook=book,
        code=code,
        share=float(found.shares[image][place]),
        normal_share=float(found.normal_shares[place]),
        mask=mask & (F.interpolate(cell, size=size, mode="nearest")[0, 0] > 0),
        place=place_of(row, column, grid),
    )


def place_of(row: int, column: int, grid: int) -> str:
    """Name a cell of a grid.

    Args:
        row: Its row, from the top.
        column: Its column, from the left.
        grid: Cells per side.

    Example:
        >>> place_of(0, 1, 2), place_of(0, 1, 3), place_of(0, 0, 1)
        ('upper right quarter', 'cell in row 1 and column 2 of 3 x 3', 'image')
    """
    if grid == 1:
        return "image"
    if grid == 2:
        return f"{('upper', 'lower')[row]} {('left', 'right')[column]} quarter"
    return f"cell in row {row + 1} and column {column + 1} of {grid} x {grid}"

"""Say in words, and mark in the image, why a composition is abnormal."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Explanation(NamedTuple):
    """The code that adds most to an image's composition distance.

    Attributes:
        level: Backbone level of the code.
        codebook_size: How many codes its codebook has.
        codebook: Number of its codebook among those of that level and size.
        code: Its number in the codebook.
        share: Share of the patches there that belong to it, in [0, 1].
        normal_share: The same on normal images.
        mask: Patches there that belong to the code, boolean [H, W] at the size of the image.
        place: Which part of the image is meant, "image" for all of it.

    Example:
        >>> import torch
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


def place_of(row: int, column: int, grid: int) -> str:
    """Name of a cell of a grid.

    Args:
        row: Its row, from above.
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

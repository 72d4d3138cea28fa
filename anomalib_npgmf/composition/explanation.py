"""Explanation of an abnormal composition: one line of text, and a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_npgmf.composition.examples import component_counts
from anomalib_npgmf.composition.histogram import Evidence


class Explanation(NamedTuple):
    """The code that contributes most to the squared distance of an image's histogram.

    Attributes:
        level: Backbone level of the code.
        codebook_size: How many codes its codebook has.
        code: Index in the codebook.
        share: Share of the patches in the cell that are assigned to the code, in [0, 1].
        normal_share: Its usual value on normal images, see `anomalib_npgmf.composition.histogram.Evidence`.
        mask: Where in the cell the code is, boolean [H, W].
        place: The cell in words; "image" for the whole image.
        patches: Normal patches that belong to the code, RGB, [3, 3, 32, 32] uint8; ``None`` if they are not known.
        regions: Number of connected regions of the code in the image and in normal ones; ``None`` where normal images
            differ in it, and for cells.

    Example:
        >>> explanation = Explanation(4, 16, 7, 0.02, 0.05, torch.zeros(2, 2, dtype=torch.bool))
        >>> explanation.text
        'composition: less of code 7 than normal (level 4, 16 codes, 2.0 % of the image instead of 5.0 %)'
        >>> explanation._replace(regions=(5, 6)).text
        'composition: one region of code 7 is missing, 5 instead of 6 (level 4, 16 codes, 2.0 % of the image ...'
    """

    level: int
    codebook_size: int
    code: int
    share: float
    normal_share: float
    mask: Tensor
    place: str = "image"
    patches: Tensor | None = None
    regions: tuple[int, int] | None = None

    @property
    def text(self) -> str:
        """One line for a caption."""
        where, whole = ("", "the image") if self.place == "image" else (f" in the {self.place}", "it")
        return (
            f"composition: {self._what}{where} "
            f"(level {self.level}, {self.codebook_size} codes, "
            f"{self.share:.1%} of {whole} instead of {self.normal_share:.1%})"
        ).replace("%", " %")

    @property
    def reason(self) -> str:
        """`text` without level and number of codes.

        Example:
            >>> mask = torch.zeros(2, 2, dtype=torch.bool)
            >>> Explanation(4, 16, 7, 0.02, 0.05, mask, "lower left quarter").reason
            'less of code 7 than normal in the lower left quarter (2.0 % instead of 5.0 %)'
        """
        where = "" if self.place == "image" else f" in the {self.place}"
        return f"{self._what}{where} ({self.share:.1%} instead of {self.normal_share:.1%})".replace("%", " %")

    @property
    def _what(self) -> str:
        more = self.share > self.normal_share
        found, usual = self.regions or (0, 0)
        if found == usual or (found > usual) != more:
            return f"{'more' if more else 'less'} of code {self.code} than normal"
        gap = abs(found - usual)
        number = f"one region of code {self.code} is" if gap == 1 else f"{gap} regions of code {self.code} are"
        return f"{number} {'too many' if more else 'missing'}, {found} instead of {usual}"


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
    examples = found.examples
    usual = examples.usual_regions(book, code) if examples is not None and grid == 1 else None
    cell = torch.zeros(1, 1, grid, grid, device=mask.device)
    cell[0, 0, row, column] = 1
    return Explanation(
        level=levels[number],
        codebook_size=codes,
        code=code,
        share=float(found.shares[image][place]),
        normal_share=float(found.normal_shares[place]),
        mask=mask & (F.interpolate(cell, size=size, mode="nearest")[0, 0] > 0),
        place=place_of(row, column, grid),
        patches=examples.patches[book, code] if examples is not None and bool(examples.patches.any()) else None,
        regions=None if usual is None else (component_counts(found.memberships[image, book])[code], usual),
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

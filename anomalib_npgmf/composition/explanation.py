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
        share: Share of the image's patches that belong to it, in [0, 1].
        normal_share: The same on normal images.
        mask: Patches that belong to the code, boolean [H, W] at the size of the image.

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

    @property
    def text(self) -> str:
        """One line for a caption."""
        sign = "more" if self.share > self.normal_share else "less"
        return (
            f"composition: {sign} of code {self.code} than normal (level {self.level}, {self.codebook_size} codes, "
            f"{self.share:.1%} of the image instead of {self.normal_share:.1%})"
        ).replace("%", " %")
